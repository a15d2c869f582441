"""The masked regressor under the masked transformer: landmarks and the tokens already known → what the others say.

A residual MLP learns in minutes what cross-entropy over unrelated codes learns in days: roughly which latent belongs in
every place, how sure that is, and what a known token says about the others. The masked model starts from it: its logits
begin at minus the squared distance of each code to the regressed latent, in units of what is not known.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mega_backend.model.conditioning import FEATURE_COUNT, LANDMARK_COUNT
from mega_backend.rotations import matrix_from_6d, sixd_from_matrix

# Bounds of the logarithms that say how sure something is: no place is hopeless, none is known for good.
SUREST = 3.0
# Directions in which errors of all places together are told apart.
TOGETHER = 64


class Regression(NamedTuple):
    """What a person's landmarks and known tokens say.

    latent (B, T, D); sureness (B, T, D): logarithm of the precision, relative to what is usual for that place;
    rotation_6d (B, 6); camera (B, 3) = s, tx, ty; rotation_spread (B, 3): radians, standard deviation of the rotation
    about the camera's axes; hidden (B, width): the last hidden layer.
    """

    latent: torch.Tensor
    sureness: torch.Tensor
    rotation_6d: torch.Tensor
    camera: torch.Tensor
    rotation_spread: torch.Tensor
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


def lifted_landmarks(features: torch.Tensor) -> torch.Tensor:
    """The 3D estimate put over the 2D landmarks, (B, 33, 3) metres, camera axes; zeros where there is no estimate.

    Depth comes from the estimate, x and y from the picture: under the weak perspective that fits the estimate to the
    landmarks best (those that are seen count most). The picture is the more exact of the two.
    """
    place, seen, present = features[..., :2], features[..., 2:3], features[..., 3:4]
    estimate, known = features[..., 4:7], features[..., 7:]
    weight = present * known * (0.05 + seen)
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-6)
    flat = estimate[..., :2]
    middle, flat_middle = (weight * place).sum(1, keepdim=True), (weight * flat).sum(1, keepdim=True)
    across = (weight * (place - middle) * (flat - flat_middle)).sum((1, 2))
    scale = across / (weight * (flat - flat_middle).square()).sum((1, 2)).clamp_min(1e-6)
    moved = (place - middle) / scale.clamp_min(0.1)[:, None, None] + flat_middle
    moved = torch.where(present > 0, moved, flat).clamp(-2, 2)
    return torch.cat([moved, estimate[..., 2:]], dim=-1) * known


class LandmarkRegressor(nn.Module):
    """Landmark features (B, 33, 8), and the tokens known already → `Regression`.

    The detector's 3D estimate enters as it is and turned into the body's own axes, there also put over the 2D
    landmarks; the rotation is predicted relative to those axes: a network of sums would have to learn that product of
    rotation and pose. Features that are all zero mean: nobody was seen.
    """

    def __init__(self, token_count: int, latent_size: int, width: int = 1024, depth: int = 4, dropout: float = 0.0):
        super().__init__()
        self.token_count, self.latent_size = token_count, latent_size
        self.stem = nn.Linear(LANDMARK_COUNT * (FEATURE_COUNT + 6) + 9, width)
        self.known = nn.Linear(token_count * (latent_size + 1), width, bias=False)
        self.blocks = nn.ModuleList(ResidualMLP(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.latent = nn.Linear(width, token_count * latent_size)
        self.sureness = nn.Linear(width, token_count * latent_size)
        self.pose = nn.Linear(width, 12)
        # Latents are regressed in units of their spread over the training bodies, around their mean.
        self.register_buffer("latent_mean", torch.zeros(token_count, latent_size))
        self.register_buffer("latent_scale", torch.ones(token_count, latent_size))
        for layer in (self.known, self.sureness, self.pose):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.sureness.bias)
        with torch.no_grad():  # the estimated frame itself, filling the crop, known to within ten degrees or so
            self.pose.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0, 1.0, 0, 0, -1.7, -1.7, -1.7]))

    def forward(
        self, features: torch.Tensor, known: torch.Tensor | None = None, visible: torch.Tensor | None = None
    ) -> Regression:
        """features (B, 33, 8) from `conditioning.landmark_features`; known (B, T, D): latents where visible (B, T)."""
        estimate, has_estimate = features[..., 4:7], features[..., 7:]
        frame = estimated_frame(estimate)
        turned = (estimate @ frame) * has_estimate
        lifted = lifted_landmarks(features) @ frame
        x = self.stem(torch.cat([part.flatten(1) for part in (features, turned, lifted, frame)], dim=1))
        if known is not None:
            shown = visible.to(features.dtype)[..., None]
            # From where it is shown on: what lies in masked places is nothing to read.
            told = ((known - self.latent_mean) / self.latent_scale).masked_fill(shown == 0, 0.0)
            x = x + self.known(torch.cat([told, shown], dim=-1).flatten(1).to(x.dtype))
        for block in self.blocks:
            x = block(x)
        hidden = F.gelu(self.norm(x))
        shape = (self.token_count, self.latent_size)
        latent = self.latent_mean + self.latent_scale * self.latent(hidden).unflatten(1, shape)
        sureness = SUREST * torch.tanh(self.sureness(hidden).float() / SUREST).unflatten(1, shape)
        pose = self.pose(hidden).float()
        rotation = frame.float() @ matrix_from_6d(pose[:, :6])
        spread = pose[:, 9:].clamp(-5.0, 1.0).exp()
        return Regression(latent, sureness, sixd_from_matrix(rotation), pose[:, 6:9], spread, hidden)


class LatentHead(nn.Module):
    """Logits that fall with the squared distance of every code to a latent, −½ Σ w (A μ − A code)² + b.

    A, one matrix per place, turns errors of the regressor into uncorrelated ones of unit size; w (B, T, D), the
    precisions, say how much better or worse than that each is known here; b, one number per code, how common codes are
    beyond what their places tell. μ and log w come from the regressor; the transformer moves both, and begins by moving
    neither.

    A distance has one valley; a limb may point to the camera or away from it. So the transformer also adds any function
    of the codes that a few features of each make up (`free_rank` of them, at first waves over where the codes lie), and
    begins by adding nothing.
    """

    def __init__(self, token_count: int, code_count: int, latent_size: int, width: int, free_rank: int = 0) -> None:
        super().__init__()
        eye = torch.eye(latent_size).repeat(token_count, 1, 1)
        # Codes have places per token (T, K, D): one tokenizer's codebook for all, or one for each.
        self.register_buffer("codebook", torch.zeros(token_count, code_count, latent_size))
        self.register_buffer("precision", eye)
        # How errors of different places go together (`sampling.Codes`), under landmarks and under nothing.
        self.register_buffer("together", torch.zeros(2, token_count * latent_size, TOGETHER))
        self.common = nn.Parameter(torch.zeros(token_count, code_count))
        self.usual = nn.Parameter(torch.zeros(token_count, latent_size))
        self.shift = nn.Linear(width, latent_size)
        self.sharpness = nn.Linear(width, latent_size)
        for layer in (self.shift, self.sharpness):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.free_rank = free_rank
        if free_rank:
            self.code_features = nn.Parameter(torch.zeros(token_count, code_count, free_rank))
            self.free = nn.Linear(width, free_rank)
            nn.init.zeros_(self.free.weight)
            nn.init.zeros_(self.free.bias)

    @torch.no_grad()
    def place_codes(self, codebook: torch.Tensor) -> None:
        """Say where the codes lie, (T, K, D), before training; features of the codes become waves over these places."""
        self.codebook.copy_(codebook)
        if self.free_rank:
            spread = codebook.std(1, keepdim=True).clamp_min(1e-6)
            waves = torch.randn(codebook.shape[-1], self.free_rank, device=codebook.device)
            phase = 2 * torch.pi * torch.rand(self.free_rank, device=codebook.device)
            self.code_features.copy_(torch.cos((codebook - codebook.mean(1, keepdim=True)) / spread @ waves + phase))

    def forward(self, x: torch.Tensor | None, latent: torch.Tensor, sureness: torch.Tensor) -> torch.Tensor:
        """x (B, T, width) or None; latent and sureness (B, T, D) of the regressor → logits (B, T, K)."""
        latent, sureness = latent.float(), sureness.float() + self.usual
        # Small differences of large numbers: never in half precision.
        with torch.autocast(latent.device.type, enabled=False):
            mean = torch.einsum("btd,ted->tbe", latent, self.precision)
            if x is not None:
                mean = mean + self.shift(x.float()).transpose(0, 1)
                sureness = sureness + self.sharpness(x.float())
            weight = sureness.transpose(0, 1).exp()
            codes = torch.einsum("tkd,ted->tek", self.codebook, self.precision)
            # Σ w (½ code² − mean · code); w mean² is the same for all codes and cancels in the softmax.
            told = torch.cat([weight, weight * mean], dim=-1)
            logits = self.common - (told @ torch.cat([0.5 * codes.square(), -codes], dim=1)).transpose(0, 1)
            if x is not None and self.free_rank:
                free = self.free(x.float()).transpose(0, 1) @ self.code_features.mT
                logits = logits + free.transpose(0, 1)
        return logits
