"""A small network that reads body landmarks off a crop: what a detector would say, learnt with the model it serves.

Where a feature map of a picture teaches poses from tens of thousands of pictures, landmarks are learnt from thousands,
and what follows from them (`LandmarkRegressor`, the masked model) has been learnt from motion capture without any
picture. Positions are expectations over heatmaps (Sun et al. 2018, "Integral Human Pose Regression"), 3D positions are
read off maps at the same places (Mehta et al. 2017, "VNect").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mega_backend.model.conditioning import FEATURE_COUNT, LANDMARK_COUNT, landmark_features

HALF_VISIBLE = 0.12
"""Expected error, in crop coordinates, of a landmark that counts as half visible."""


class Reading(NamedTuple):
    """landmarks (B, 33, 2) in crop coordinates, log_error (B, 33) of their expected error, landmarks_3d (B, 33, 3)
    metres, camera axes, hip-centred; log_heat (B, 33, S/8, S/8): log-probability of each landmark's places."""

    landmarks: torch.Tensor
    log_error: torch.Tensor
    landmarks_3d: torch.Tensor
    log_heat: torch.Tensor


class Block(nn.Module):
    """Two 3×3 convolutions with normalisation, and a shortcut; the first may halve the picture."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if channels_in != channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) → (B, channels, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Reader(nn.Module):
    """Normalised RGB crops (B, 3, S, S) → landmark features (B, 33, 8); S a multiple of 32."""

    channels = FEATURE_COUNT

    def __init__(self, input_size: int = 96, width: int = 32) -> None:
        super().__init__()
        if input_size % 32:
            raise ValueError(f"input_size must be a multiple of 32, not {input_size}")
        self.input_size = input_size
        self.stem = nn.Sequential(nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU())
        sizes = [width, 2 * width, 4 * width, 8 * width]
        # Halved to S/4, S/8, S/16, S/32: the last ones see the whole person.
        self.stages = nn.ModuleList(
            nn.Sequential(Block(before, after, 2), *(Block(after, after) for _ in range(extra)))
            for before, after, extra in zip([width // 2, *sizes], sizes, (0, 1, 1, 1), strict=False)
        )
        inner = 3 * width
        self.lateral = nn.ModuleList(nn.Conv2d(size, inner, 1) for size in sizes[1:])
        self.merged = Block(inner, inner)
        # Of every landmark: heat, offset x, y, log error, X, Y, Z.
        self.maps = nn.Conv2d(inner, 7 * LANDMARK_COUNT, 1)
        with torch.no_grad():
            self.maps.weight.mul_(0.1)
            self.maps.bias.zero_()
            self.maps.bias.view(LANDMARK_COUNT, 7)[:, 3] = -1.5
        self.to(memory_format=torch.channels_last)

    def read(self, crops: torch.Tensor) -> Reading:
        """What is seen in normalised RGB crops (B, 3, S, S)."""
        x = self.stem(crops.contiguous(memory_format=torch.channels_last))
        pyramid = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        x = self.lateral[-1](pyramid[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(pyramid[1:-1]), strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") + lateral(finer)
        maps = self.maps(self.merged(x)).float().unflatten(1, (LANDMARK_COUNT, 7))
        side = maps.shape[-1]
        maps = maps.flatten(3)
        log_heat = maps[:, :, 0].log_softmax(-1)
        share = log_heat.exp()[:, :, None]
        offset_x, offset_y, log_error, *place = (share * maps[:, :, 1:]).sum(-1).unbind(-1)
        at = (torch.arange(side, device=maps.device) + 0.5) * (2 / side) - 1
        heat = share[:, :, 0].unflatten(-1, (side, side))
        landmarks = torch.stack([(heat.sum(2) * at).sum(-1) + offset_x, (heat.sum(3) * at).sum(-1) + offset_y], -1)
        log_heat = log_heat.unflatten(-1, (side, side))
        return Reading(landmarks, log_error.clamp(-6, 2), torch.stack(place, -1), log_heat)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops (B, 3, S, S) → landmark features (B, 33, 8), as `conditioning.landmark_features` makes them."""
        return features(self.read(crops))


def features(reading: Reading) -> torch.Tensor:
    """A reading as the landmark model takes it, (B, 33, 8): the expected error stands in for visibility."""
    visibility = 1 / (1 + (reading.log_error.exp() / HALF_VISIBLE).square())
    return landmark_features(reading.landmarks, visibility, reading.landmarks_3d)
