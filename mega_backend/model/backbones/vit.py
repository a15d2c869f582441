"""Vision transformer in ViTPose's parameter names (Xu et al. 2022).

Patches of 16×16 with a border of 2 pixels, learned positions (the class token's added to every patch), pre-norm blocks
with biased qkv, LayerNorm ε 1e-6. ViT-H turns the central 256×192 of a 256×256 crop into 1280×16×12.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...linear import Linear
from ..transformer import FeedForward

EPSILON = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention; qkv and projection with biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of the {heads} heads")
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, width) → the same shape."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, ratio: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = FeedForward(width, ratio * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, width) → the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """One token per patch; the border makes the first and last patches see past the edge."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch, padding=2)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) → (B, width, H/patch, W/patch)."""
        return self.proj(crops)


class ViT(nn.Module):
    """The feature extractor; the defaults are ViT-H on 256×192.

    picture : height and width that it sees; of a square crop as high, the middle is cut out
    """

    def __init__(
        self,
        width: int = 1280,
        depth: int = 32,
        heads: int = 16,
        picture: Sequence[int] = (256, 192),
        patch: int = 16,
        ratio: int = 4,
    ):
        super().__init__()
        self.channels = width
        self.picture = tuple(picture)
        self.input_size = self.picture[0]
        patches = (self.picture[0] // patch) * (self.picture[1] // patch)
        self.patch_embed = PatchEmbedding(width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Normalised RGB crops (B, 3, H, H), or their central (B, 3, H, W) → (B, width, H/patch, W/patch)."""
        height, width = self.picture
        if crops.shape[-2] != height or crops.shape[-1] < width:
            raise ValueError(
                f"this ViT takes crops of {height}×{height} pixels, not {crops.shape[-2]}×{crops.shape[-1]}"
            )
        left = (crops.shape[-1] - width) // 2
        x = self.patch_embed(crops[..., left : left + width])
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x).transpose(1, 2).unflatten(2, grid).contiguous()
