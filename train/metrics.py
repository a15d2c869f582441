"""Errors of body meshes and of sets of samples. Distances come in as metres and go out as millimetres.

Two protocols are in use for the same names. *standard*: joints regressed from the mesh, both bodies moved to their
pelvis. *released*: the published programs' own, both bodies moved to the mean of their vertices. Say which one a number
is from.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mega_backend.rotations import angle_between

# The 14 joints of the standard protocol, in the order of the LSP data set, among the 22 joints of the usual body model:
# right ankle, knee, hip, left hip, knee, ankle, right wrist, elbow, shoulder, left shoulder, elbow, wrist, neck, head.
BODY22_TO_LSP14 = (8, 5, 2, 1, 4, 7, 21, 19, 17, 16, 18, 20, 12, 15)
MILLIMETRES = 1000.0


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Mean distance in mm (…) of corresponding points (…, N, 3): PVE on vertices, MPJPE on joints."""
    return MILLIMETRES * (first - second).norm(dim=-1).mean(-1)


def moved_to(points: Tensor, origin: Tensor) -> Tensor:
    """Points (…, N, 3) with origin (…, 3) at zero: the pelvis (standard) or the mean vertex (released)."""
    return points - origin[..., None, :]


def degrees(first: Tensor, second: Tensor) -> Tensor:
    """Angle in degrees (…) between rotations (…, 3, 3)."""
    return torch.rad2deg(angle_between(first, second))


def procrustes(points: Tensor, target: Tensor) -> Tensor:
    """Points (…, N, 3) after the similarity transform (rotation, no reflection) that takes them closest to the target.

    Closed form of Umeyama (1991). Points that all coincide are moved to the target's mean.
    """
    mean, target_mean = points.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    centred, target_centred = points - mean, target - target_mean
    u, s, vt = torch.linalg.svd(target_centred.mT @ centred)
    sign = torch.ones_like(s)
    sign[..., -1] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign[..., None, :]) @ vt
    scale = (s * sign).sum(-1) / centred.square().sum((-2, -1)).clamp_min(1e-12)
    return scale[..., None, None] * centred @ rotation.mT + target_mean


def aligned_distances(points: Tensor, target: Tensor) -> Tensor:
    """Mean distance in mm (…) after `procrustes`: PA-MPJPE on joints."""
    return distances(procrustes(points, target), target)


def blind(joints: Tensor, rotation: Tensor) -> dict[str, float]:
    """Errors in mm of answers that never look: what a model that has learnt anything must beat.

    joints (B, J, 3) in the bodies' own axes, pelvis at the origin; rotation (B, 3, 3) to camera axes. `mpjpe` and
    `pa_mpjpe` are those of the mean body in the mean orientation for everybody; `mean_joints_mpjpe` that of the joints'
    mean in camera axes, which is no body any more where people face all ways, but the least squared error.
    """
    placed = joints @ rotation.mT
    u, _, vt = torch.linalg.svd(rotation.mean(0))
    turn = u @ torch.diag(torch.tensor([1.0, 1.0, torch.linalg.det(u @ vt).sign()]).to(u)) @ vt
    body = joints.mean(0)
    return {
        "mpjpe": distances(body @ turn.mT, placed).mean().item(),
        "pa_mpjpe": aligned_distances(body.expand_as(joints), joints).mean().item(),
        "mean_joints_mpjpe": distances(placed.mean(0), placed).mean().item(),
    }


class BestOf(NamedTuple):
    """Errors (B) of the best of the first Q samples, for each Q asked for."""

    counts: tuple[int, ...]
    errors: Tensor

    def means(self) -> dict[int, float]:
        """{Q: mean over bodies}."""
        return dict(zip(self.counts, self.errors.mean(-1).tolist(), strict=True))


def best_of(errors: Tensor, counts: tuple[int, ...] = (1, 5, 10, 25)) -> BestOf:
    """Smallest error among the first Q of N samples; errors (B, N) → (len(counts), B). Counts above N are left out."""
    counts = tuple(count for count in counts if count <= errors.shape[-1])
    return BestOf(counts, torch.stack([errors[:, :count].amin(-1) for count in counts]))


def pairwise_distance(points: Tensor) -> Tensor:
    """Average pairwise distance (APD), mm (B): how far samples (B, N, P, 3) lie from each other, point by point."""
    count = points.shape[1]
    if count < 2:
        raise ValueError("diversity needs at least two samples")
    total = points.new_zeros(len(points))
    for number in range(count - 1):  # one sample against the later ones: memory of one set, not of all pairs
        total += (points[:, number, None] - points[:, number + 1 :]).norm(dim=-1).mean(-1).sum(1)
    return MILLIMETRES * total / (count * (count - 1) / 2)


def spread(points: Tensor) -> Tensor:
    """Standard deviation in mm (B, P) of samples (B, N, P, 3) around their mean: root of the mean squared distance."""
    return MILLIMETRES * (points - points.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()


def coverage(points: Tensor, truth: Tensor, levels: tuple[float, ...] = (0.5, 0.9)) -> dict[float, float]:
    """Share of true joints inside the region that holds `level` of the samples: calibrated samples give the level back.

    points (B, N, P, 3), truth (B, P, 3). The region of a joint is the ball around the samples' mean that holds this
    share of them; each sample is judged against the mean of the others, as the truth is.
    """
    count = points.shape[1]
    if count < 3:
        raise ValueError("calibration needs at least three samples")
    mean = points.mean(1, keepdim=True)
    others = (mean * count - points) / (count - 1)
    own = (points - others).norm(dim=-1)
    error = (truth - mean[:, 0]).norm(dim=-1)
    rank = (own < error[:, None]).float().mean(1)
    return {level: (rank <= level).float().mean().item() for level in levels}


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson correlation of two tensors of one shape: does the predicted spread follow the error?"""
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()
