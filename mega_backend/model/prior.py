"""The landmark regressor: from landmark features straight to continuous latents, rotation and camera.

A residual MLP learns in minutes what cross-entropy over unrelated codes learns in days: roughly which latent belongs in
every place. The masked model starts from it: its logits begin at −α · squared distance of each code to that latent.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mega_backend.model.conditioning import FEATURE_COUNT, LANDMARK_COUNT


class Regression(NamedTuple):
    """latent (B, T, D), rotation_6d (B, 6), camera (B, 3) = s, tx, ty, and the last hidden layer (B, width)."""

    latent: torch.Tensor
    rotation_6d: torch.Tensor
    camera: torch.Tensor
    hidden: torch.Tensor


class ResidualMLP(nn.Module):
    """x + fc2(GELU(fc1(norm(x))))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, width) → (B, width)."""
        return x + self.fc2(self.dropout(F.gelu(self.fc1(self.norm(x)))))


class LandmarkRegressor(nn.Module):
    """Landmark features (B, 33, 8) → `Regression`."""

    def __init__(self, token_count: int, latent_size: int, width: int = 1024, depth: int = 3, dropout: float = 0.0):
        super().__init__()
        self.token_count, self.latent_size = token_count, latent_size
        self.stem = nn.Linear(LANDMARK_COUNT * FEATURE_COUNT, width)
        self.blocks = nn.ModuleList(ResidualMLP(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.latent = nn.Linear(width, token_count * latent_size)
        self.pose = nn.Linear(width, 9)
        # Latents are regressed in units of their spread over the training bodies, around their mean.
        self.register_buffer("latent_mean", torch.zeros(token_count, latent_size))
        self.register_buffer("latent_scale", torch.ones(token_count, latent_size))
        nn.init.zeros_(self.pose.weight)
        with torch.no_grad():  # upright, facing the camera, filling four fifths of the crop
            self.pose.bias.copy_(torch.tensor([1.0, 0, 0, 0, -1, 0, 1.0, 0, 0]))

    def forward(self, features: torch.Tensor) -> Regression:
        """features (B, 33, 8) from `conditioning.landmark_features`."""
        x = self.stem(features.flatten(1))
        for block in self.blocks:
            x = block(x)
        hidden = F.gelu(self.norm(x))
        latent = self.latent(hidden).unflatten(1, (self.token_count, self.latent_size))
        pose = self.pose(hidden)
        return Regression(self.latent_mean + self.latent_scale * latent, pose[:, :6], pose[:, 6:], hidden)


class LatentHead(nn.Module):
    """Logits that fall with the squared distance of every code to a predicted latent, −α · ‖μ − code‖².

    μ = base + W x and log α = a_place + w x: with W and w zero at first, the masked model begins as the regressor and
    learns how the tokens already visible move and sharpen its guess. Without conditioning a learned base takes over.
    """

    def __init__(self, token_count: int, code_count: int, latent_size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(code_count, latent_size))
        self.unconditional = nn.Parameter(torch.zeros(token_count, latent_size))
        self.log_alpha = nn.Parameter(torch.zeros(token_count, 1))
        self.unconditional_log_alpha = nn.Parameter(torch.zeros(token_count, 1))
        self.shift = nn.Linear(width, latent_size)
        self.sharpness = nn.Linear(width, 1)
        for layer in (self.shift, self.sharpness):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        """x (B, T, width), base (B, T, D) or None → logits (B, T, K)."""
        latent = (self.unconditional if base is None else base) + self.shift(x)
        log_alpha = (self.unconditional_log_alpha if base is None else self.log_alpha) + self.sharpness(x)
        # Without ‖μ‖², which is the same for all codes and cancels in the softmax.
        distance = self.codebook.square().sum(-1) - 2 * latent @ self.codebook.T
        return -log_alpha.exp() * distance
