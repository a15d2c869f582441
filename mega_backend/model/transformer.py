"""Pre-norm transformer blocks, their parameters named as in the published weights; fixed sine positions."""

import torch
from torch import nn
from torch.nn import functional as F

from mega_backend.linear import Linear, linear

# The epsilon of the timm release that the published weights were trained with; newer releases use 1e-6.
EPSILON = 1e-5


class Attention(nn.Module):
    """Multi-head self-attention: qkv without bias, output projection with."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of the {heads} heads")
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.proj = Linear(width, width)

    def forward(self, x: torch.Tensor, key_mask: torch.Tensor | None = None, skip: int = 0) -> torch.Tensor:
        """x (B, N, width) → (B, N - skip, width): every place is a key, the first `skip` places ask nothing.

        key_mask (B, N) bool, true where a place may be attended to; None means everywhere.
        """
        batch, places, width = x.shape
        if skip:
            query = linear(x[:, skip:], self.qkv.weight[:width])
            key, value = linear(x, self.qkv.weight[width:]).split(width, dim=-1)
        else:
            query, key, value = self.qkv(x).split(width, dim=-1)
        query, key, value = (
            part.reshape(batch, part.shape[1], self.heads, width // self.heads).transpose(1, 2)
            for part in (query, key, value)
        )
        mask = None if key_mask is None else key_mask[:, None, None, :]
        # Fused attention is slow to differentiate on CPUs: a training step takes a third less time without.
        attend = _attention if x.device.type == "cpu" and torch.is_grad_enabled() else F.scaled_dot_product_attention
        y = attend(query, key, value, attn_mask=mask)
        return self.proj(y.transpose(1, 2).reshape(batch, places - skip, width))


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None):
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1) @ value


class FeedForward(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, width) → (…, width)."""
        return self.fc2(self.fc1(x, gelu=True))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); MLP ratio 4."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: torch.Tensor, key_mask: torch.Tensor | None = None, skip: int = 0) -> torch.Tensor:
        """x (B, N, width) → (B, N - skip, width); see `Attention.forward` for key_mask and skip."""
        x = x[:, skip:] + self.attn(self.norm1(x), key_mask, skip)
        return x + self.mlp(self.norm2(x))


def sine_positions(count: int, width: int) -> torch.Tensor:
    """Fixed positions (count, width): even columns sine, odd columns cosine, base 10000."""
    place = torch.arange(count, dtype=torch.float64)[:, None]
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    table = torch.zeros(count, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(place * rate)
    table[:, 1::2] = torch.cos(place * rate)[:, : width // 2]
    return table.float()
