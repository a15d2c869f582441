"""VQ-HPS (Fiche et al., ECCV 2024): a picture to mesh tokens in one pass, with rotation and camera beside them.

One backbone looks for the pose, a second for rotation and camera. Pose features become tokens with 2D sine positions,
pass a transformer encoder, are read by a decoder with one learned query per mesh token, and end in causal
self-attention blocks. Parameters carry the published names.

A peculiarity of the published program, needed for its numbers: the axis along which the causal blocks attend is the
*batch*, not the mesh tokens. A picture therefore sees those before it in its batch, and alone it sees only itself.
``logits`` computes that; with ``alone=True``, as ``best`` and everything built on it, every picture is a batch of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .backbones import build
from .sampling import Samples

POSE_SIZE = 17 * 3  # the Human3.6M joints of the initial pose


class Features(NamedTuple):
    """Feature maps (B, C, h, w) of the two backbones."""

    pose: torch.Tensor
    rotation: torch.Tensor


def sine_positions_2d(height: int, width: int, channels: int) -> torch.Tensor:
    """Fixed positions (height·width, channels): half the channels for y, half for x, each over [0, 2π] (DETR's)."""
    half = channels // 2
    rate = 10000.0 ** (2 * torch.div(torch.arange(half, dtype=torch.float32), 2, rounding_mode="floor") / half)

    def axis(count: int) -> torch.Tensor:
        place = torch.arange(1, count + 1, dtype=torch.float32)
        angle = (place / (place[-1] + 1e-6) * 2 * math.pi)[:, None] / rate
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)

    y = axis(height)[:, None].expand(height, width, half)
    x = axis(width)[None].expand(height, width, half)
    return torch.cat([y, x], dim=-1).reshape(height * width, channels)


class EncoderLayer(nn.Module):
    """Pre-norm self-attention with positions on queries and keys, then a ReLU feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """x (B, N, width), positions (N, width) → (B, N, width)."""
        y = self.norm1(x)
        key = y + positions
        x = x + self.dropout(self.self_attn(key, key, y, need_weights=False)[0])
        return x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(self.norm2(x))))))


class DecoderLayer(nn.Module):
    """Pre-norm self-attention over the queries, attention to the picture, then a ReLU feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, memory: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """x (B, T, width), memory (B, N, width), its positions (N, width) → (B, T, width)."""
        y = self.norm1(x)
        x = x + self.dropout(self.self_attn(y, y, y, need_weights=False)[0])
        attended = self.multihead_attn(self.norm2(x), memory + positions, memory, need_weights=False)[0]
        x = x + self.dropout(attended)
        return x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(self.norm3(x))))))


class Stack(nn.Module):
    """Layers and the normalisation behind them."""

    def __init__(self, layers: Sequence[nn.Module], width: int):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        """x through every layer with the same further arguments, then normalised."""
        for layer in self.layers:
            x = layer(x, *context)
        return self.norm(x)


class CausalAttention(nn.Module):
    """Self-attention in which an element sees itself and those before it."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, width) → the same shape."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        rate = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        return self.dropout(self.proj(y.transpose(1, 2).flatten(2)))


class CausalBlock(nn.Module):
    """x + attention(ln1(x)), then x + mlp(ln2(x)) with GELU."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, width) → the same shape."""
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class CausalHead(nn.Module):
    """Causal blocks over the batch (see the module's text), then one logit per code."""

    def __init__(self, blocks: Sequence[nn.Module], width: int, code_count: int):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, code_count, bias=False)

    def forward(self, x: torch.Tensor, alone: bool) -> torch.Tensor:
        """(B, T, width) → (B, T, code_count); alone: every row as if it were the only one of its batch."""
        batch = len(x)
        x = self.blocks(x.reshape(-1, 1, x.shape[2]) if alone else x.transpose(0, 1))
        x = x.unflatten(0, (batch, -1)).squeeze(2) if alone else x.transpose(0, 1)
        return self.head(self.ln_f(x))


class Transformer(nn.Module):
    """Encoder over picture tokens, decoder over mesh queries, causal head."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.dec_head = head

    def forward(
        self, picture: torch.Tensor, queries: torch.Tensor, positions: torch.Tensor, alone: bool
    ) -> torch.Tensor:
        """picture (B, N, width), queries (B, T, width), positions (N, width) → logits (B, T, code_count)."""
        memory = self.encoder(picture, positions)
        return self.dec_head(self.decoder(queries, memory, positions), alone)


class VQHPS(nn.Module):
    """The published regressor of mesh tokens; the defaults are its published size with HRNet-W48.

    backbone : {"name": "hrnet" | "resnet", …options} for both backbones, or None: feature maps are given directly
    feature_channels : channels of the feature maps; only needed without a backbone
    initial_pose : the 17 Human3.6M joints (51 numbers, metres) that rotation and camera start from
    """

    def __init__(
        self,
        token_count: int = 54,
        code_count: int = 512,
        width: int = 512,
        heads: int = 8,
        hidden: int = 1024,
        encoder_layers: int = 1,
        decoder_layers: int = 1,
        head_layers: int = 1,
        pose_width: int = 1024,
        backbone: Mapping[str, Any] | None = None,
        feature_channels: int | None = None,
        initial_pose: Sequence[float] | None = None,
        dropout: float = 0.2,
    ):
        super().__init__()
        if initial_pose is not None and len(initial_pose) != POSE_SIZE:
            raise ValueError(f"initial_pose has {len(initial_pose)} numbers, 17 joints have {POSE_SIZE}")
        self.config = {
            "token_count": token_count,
            "code_count": code_count,
            "width": width,
            "heads": heads,
            "hidden": hidden,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "head_layers": head_layers,
            "pose_width": pose_width,
            "backbone": None if backbone is None else dict(backbone),
            "feature_channels": feature_channels,
            "initial_pose": None if initial_pose is None else [float(value) for value in initial_pose],
            "dropout": dropout,
        }
        self.token_count, self.code_count = token_count, code_count
        if backbone is not None:
            self.backbone_pose, self.backbone_rot = build(**backbone), build(**backbone)
            if feature_channels not in (None, self.backbone_pose.channels):
                raise ValueError(f"the backbone has {self.backbone_pose.channels} channels, not {feature_channels}")
            feature_channels = self.backbone_pose.channels
        if feature_channels is None:
            raise ValueError("without a backbone, say the feature_channels of the feature maps")
        self.feature_channels = feature_channels
        layer = {"width": width, "heads": heads, "hidden": hidden, "dropout": dropout}
        self.transformer = Transformer(
            Stack([EncoderLayer(**layer) for _ in range(encoder_layers)], width),
            Stack([DecoderLayer(**layer) for _ in range(decoder_layers)], width),
            CausalHead([CausalBlock(**layer) for _ in range(head_layers)], width, code_count),
        )
        self.mesh_token_embed = nn.Embedding(token_count, width)
        self.conv_1x1 = nn.Conv2d(feature_channels, width, 1)
        self.fc1 = nn.Linear(feature_channels + POSE_SIZE, pose_width)
        self.fc2 = nn.Linear(pose_width, pose_width)
        self.pose_dropout = nn.Dropout(0.5)
        self.rot_predictor = nn.Linear(pose_width, 6)
        self.cam_predictor = nn.Linear(pose_width, 3)
        given = None if initial_pose is None else torch.tensor(initial_pose, dtype=torch.float32)
        self.register_buffer("initial_pose", given, persistent=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VQHPS:
        """The model that ``config`` describes, unfilled."""
        return cls(**config)

    @property
    def input_size(self) -> int | None:
        """Side in pixels of the crops that the backbones take; None without backbones."""
        return self.backbone_pose.input_size if self.config["backbone"] else None

    def features(self, crops: torch.Tensor) -> Features:
        """Normalised RGB crops (B, 3, H, W) → the feature maps of both backbones."""
        if self.config["backbone"] is None:
            raise ValueError("this VQ-HPS model was imported without its backbones: give it feature maps")
        return Features(self.backbone_pose(crops), self.backbone_rot(crops))

    def _features(self, picture: torch.Tensor | Features, which: str) -> torch.Tensor:
        """The feature map that one of the two paths reads, computing no more than it needs."""
        if isinstance(picture, Features):
            return getattr(picture, which)
        if picture.shape[1] == self.feature_channels:
            return picture
        if picture.shape[1] != 3 or self.config["backbone"] is None:
            raise ValueError(
                f"expected crops (B, 3, H, W) or feature maps (B, {self.feature_channels}, h, w), "
                f"not {tuple(picture.shape)}" + ("" if self.config["backbone"] else "; this model has no backbones")
            )
        return (self.backbone_pose if which == "pose" else self.backbone_rot)(picture)

    def logits(
        self, picture: torch.Tensor | Features, initial_pose: torch.Tensor | None = None, alone: bool = False
    ) -> torch.Tensor:
        """Logits (B, T, K) of every code in every place.

        picture : crops (B, 3, H, W), feature maps (B, C, h, w) that serve both paths, or ``Features``
        initial_pose : accepted so that both methods take the same arguments; the tokens do not depend on it
        alone : every picture as if it were alone in its batch; False computes what the published program does
        """
        features = self._features(picture, "pose")
        tokens = self.conv_1x1(features).flatten(2).transpose(1, 2)
        positions = sine_positions_2d(*features.shape[-2:], tokens.shape[2]).to(tokens)
        queries = self.mesh_token_embed.weight.expand(len(tokens), -1, -1)
        return self.transformer(tokens, queries, positions, alone)

    @torch.no_grad()
    def best(self, picture: torch.Tensor | Features) -> Samples:
        """The likeliest code in every place, tokens (B, T), and their log-probability (B); pictures do not mix."""
        log_probability, tokens = self.logits(picture, alone=True).float().log_softmax(-1).max(-1)
        return Samples(tokens, log_probability.sum(1))

    def pose(
        self, picture: torch.Tensor | Features, initial_pose: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """rotation_6d (B, 6) and camera (B, 3) = scale, x, y of the crop's weak perspective.

        initial_pose : (B, 51) or (51,) Human3.6M joints in metres; by default the one that was imported
        """
        features = self._features(picture, "rotation")
        if initial_pose is None:
            initial_pose = self.initial_pose
        if initial_pose is None:
            raise ValueError("VQ-HPS needs an initial pose: import tpose.npy, or SMPL with the Human3.6M regressor")
        start = initial_pose.to(features).expand(len(features), POSE_SIZE)
        x = torch.cat([features.mean(dim=(2, 3)), start], dim=1)
        x = self.pose_dropout(self.fc2(self.pose_dropout(self.fc1(x))))
        return self.rot_predictor(x), self.cam_predictor(x)
