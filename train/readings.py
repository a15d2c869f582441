"""What a reader should have read: its losses, in the stage that is its own and beside what is learnt through it."""

from __future__ import annotations

import torch
from torch import Tensor

from mega_backend.model.backbones.reader import Reading

# How much the parts weigh beside the distance of the landmarks in the crop.
PLACE, ERROR, HEAT = 2.0, 0.1, 0.25


def losses(reading: Reading, joints: Tensor, places: Tensor) -> dict[str, Tensor]:
    """Distances in the crop ("landmark") and in metres ("place"), likelihood of the expected errors, of the heatmaps.

    Args:
        joints: (B, 33, 3) landmarks in crop coordinates, and whether each is known. places: (B, 33, 3) metres, camera
            axes, hip-centred.
    """
    target, known = joints[..., :2], joints[..., 2]
    apart = (reading.landmarks - target).norm(dim=-1)
    # Likelihood of the error at hand under a Laplace distribution of the expected size.
    unlikely = apart.detach() * (-reading.log_error).exp() + reading.log_error
    return {
        "landmark": mean(apart, known),
        "error": mean(unlikely, known),
        "place": (reading.landmarks_3d - places).norm(dim=-1).mean(),
        "heat": heat_loss(reading.log_heat, target, known),
    }


def total(losses: dict[str, Tensor], place: float = PLACE, error: float = ERROR, heat: float = HEAT) -> Tensor:
    """The sum of `losses` under these weights."""
    return losses["landmark"] + place * losses["place"] + error * losses["error"] + heat * losses["heat"]


def mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of values (…) under weights (…); 0 where nothing counts."""
    return (weight * values).sum() / weight.sum().clamp_min(1)


def heat_loss(log_heat: Tensor, points: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of heatmaps (B, N, S, S) with the places (B, N, 2) in crop coordinates that lie in the crop.

    A point is shared out between the four places around it so that their mean is the point: with it, heatmaps are
    learnt in far fewer steps than through their expectation alone.
    """
    side = log_heat.shape[-1]
    inside = known * (points.abs() <= 1).all(-1)
    at = ((points + 1) * side / 2 - 0.5).clamp(0, side - 1)
    # Of each row and column, how much of the point is there.
    columns, rows = (
        (1 - (at[..., axis, None] - torch.arange(side, device=at.device)).abs()).clamp_min(0) for axis in (0, 1)
    )
    return mean(-torch.einsum("bnyx,bny,bnx->bn", log_heat, rows, columns), inside)
