"""The landmark regressor: from landmark features straight to continuous latents, rotation and camera.

A residual MLP learns in minutes what cross-entropy over unrelated codes learns in days: roughly which latent belongs in
every place. The masked model starts from it: its logits begin at minus the squared distance of each code to it.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mega_backend.model.conditioning import FEATURE_COUNT, LANDMARK_COUNT
from mega_backend.rotations import matrix_from_6d, sixd_from_matrix


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


def estimated_frame(landmarks_3d: torch.Tensor) -> torch.Tensor:
    """Rotation (B, 3, 3) from body to camera axes that hips and shoulders of a 3D estimate (B, 33, 3) suggest.

    The body's y axis runs from hips to shoulders, its x axis from the right hip to the left one. Estimates that are all
    zero give an upright person who faces the camera.
    """
    shoulders, hips = landmarks_3d[:, 11:13], landmarks_3d[:, 23:25]
    up = shoulders.mean(1) - hips.mean(1)
    left = (hips[:, 0] - hips[:, 1]) + 0.3 * (shoulders[:, 0] - shoulders[:, 1])
    up = F.normalize(up + 1e-4 * up.new_tensor([0.0, -1.0, 0.0]), dim=-1)
    left = F.normalize(left - (left * up).sum(-1, keepdim=True) * up + 1e-4 * up.new_tensor([1.0, 0.0, 0.0]), dim=-1)
    up = F.normalize(up - (left * up).sum(-1, keepdim=True) * left, dim=-1)
    return torch.stack([left, up, torch.linalg.cross(left, up)], dim=-1)


class LandmarkRegressor(nn.Module):
    """Landmark features (B, 33, 8) → `Regression`.

    The detector's 3D estimate enters twice, as it is and turned into the body's own axes, and the rotation is predicted
    relative to those axes: a network of sums would have to learn that product of rotation and pose.
    """

    def __init__(self, token_count: int, latent_size: int, width: int = 1024, depth: int = 3, dropout: float = 0.0):
        super().__init__()
        self.token_count, self.latent_size = token_count, latent_size
        self.stem = nn.Linear(LANDMARK_COUNT * (FEATURE_COUNT + 3) + 9, width)
        self.blocks = nn.ModuleList(ResidualMLP(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.latent = nn.Linear(width, token_count * latent_size)
        self.pose = nn.Linear(width, 9)
        # Latents are regressed in units of their spread over the training bodies, around their mean.
        self.register_buffer("latent_mean", torch.zeros(token_count, latent_size))
        self.register_buffer("latent_scale", torch.ones(token_count, latent_size))
        nn.init.zeros_(self.pose.weight)
        with torch.no_grad():  # the estimated frame itself, filling the crop
            self.pose.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0, 1.0, 0, 0]))

    def forward(self, features: torch.Tensor) -> Regression:
        """features (B, 33, 8) from `conditioning.landmark_features`."""
        estimate, known = features[..., 4:7], features[..., 7:]
        frame = estimated_frame(estimate)
        turned = (estimate @ frame) * known
        x = self.stem(torch.cat([features.flatten(1), turned.flatten(1), frame.flatten(1)], dim=1))
        for block in self.blocks:
            x = block(x)
        hidden = F.gelu(self.norm(x))
        latent = self.latent(hidden).unflatten(1, (self.token_count, self.latent_size))
        pose = self.pose(hidden).float()
        rotation = frame.float() @ matrix_from_6d(pose[:, :6])
        latent = self.latent_mean + self.latent_scale * latent
        return Regression(latent, sixd_from_matrix(rotation), pose[:, 6:], hidden)


class LatentHead(nn.Module):
    """Logits that fall with the squared distance of every code to a predicted latent, −½ α ‖A (μ − code)‖².

    A, one matrix per place, says how well each direction of its latent is known (fitted to the regressor's errors), α
    how much that is to be trusted here. μ = base + W x and α = exp(w x): with W and w zero at first, the masked model
    begins as the regressor and learns how the tokens already visible move and sharpen its guess. Without conditioning a
    learned base and its own A take over.
    """

    def __init__(self, token_count: int, code_count: int, latent_size: int, width: int) -> None:
        super().__init__()
        eye = torch.eye(latent_size).repeat(token_count, 1, 1)
        self.register_buffer("codebook", torch.zeros(code_count, latent_size))
        self.unconditional = nn.Parameter(torch.zeros(token_count, latent_size))
        self.precision = nn.Parameter(eye.clone())
        self.unconditional_precision = nn.Parameter(eye.clone())
        self.shift = nn.Linear(width, latent_size)
        self.sharpness = nn.Linear(width, 1)
        for layer in (self.shift, self.sharpness):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        """x (B, T, width), base (B, T, D) or None → logits (B, T, K)."""
        precision = self.unconditional_precision if base is None else self.precision
        latent = (self.unconditional if base is None else base) + self.shift(x).float()
        alpha = self.sharpness(x).float().exp()
        # Small differences of large numbers: never in half precision.
        with torch.autocast(x.device.type, enabled=False):
            latent = torch.einsum("btd,ted->tbe", latent.float(), precision)
            codes = torch.einsum("kd,ted->tek", self.codebook, precision)
            # ½ ‖codes‖² − latent · codes; ‖latent‖² is the same for all codes and cancels in the softmax.
            distance = torch.baddbmm(0.5 * codes.square().sum(1, keepdim=True), latent, codes, alpha=-1)
        return -alpha * distance.transpose(0, 1)
