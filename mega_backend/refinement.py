"""Moves a hypothesis' rig so that its landmarks fall on those seen in the picture, and no further than that asks for.

Gauss–Newton over bones, shape and position: the landmarks' distance in the picture (robust: one that cannot be met is
let go), and closeness of surface and shape to the hypothesis. Hypotheses stay apart, because depth is held by
closeness alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mega_backend.body import Body
from mega_backend.people import Crop
from mega_backend.result import LANDMARKS
from mega_backend.rig import Linearised, Points, Pose, Rig

DOUBT = 1.5
"""How fast a landmark's weight in the refinement falls with its visibility.

Measured on 558 rendered people, against 3: PA-MPJPE 97.9 instead of 98.2 mm, limbs in the picture 8.3 instead of 8.4 %
of the box off; and hands half out of sight are met more often.
"""
STEPS, HELD_STEPS = 4, 10
"""Steps of the refinement; more where kept parts must be met."""


@dataclass(frozen=True)
class Evidence:
    """What was seen of B people: landmarks (B,33,2) in pixels from the picture's centre.

    weights (B,33) in [0,1] (visibility); focal_length in pixels; box_side (B) in pixels, the unit of distances.
    """

    landmarks: Tensor
    weights: Tensor
    focal_length: float
    box_side: Tensor


class Framing(NamedTuple):
    """Where somebody was seen: their square crop, the picture's focal length in pixels, its width and height."""

    crop: Crop
    focal_length: float
    size: tuple[int, int]


@dataclass(frozen=True)
class Held:
    """Vertices that must stay where they are: of the full body (B,V,3), camera space, and which of them (V,) bool."""

    vertices: Tensor
    which: Tensor


@dataclass(frozen=True)
class _Sampled:
    """Some of the vertices that must stay: where (B,H,3), and as points of the body."""

    vertices: Tensor
    points: Points


@dataclass(frozen=True)
class Trust:
    """How far each thing is believed, as standard deviations.

    landmark: of a landmark, as a share of the box side. outlier: the share at which a landmark is half let go.
    surface: metres between the refined surface and the hypothesis; held: the same for vertices that must stay.
    shape: standard deviations of the population.
    """

    landmark: float = 0.01
    outlier: float = 0.08
    surface: float = 0.042
    held: float = 0.002
    shape: float = 0.5


HELD_POINTS = 80
"""So many vertices of a part that must stay are looked at."""
# The detector's landmarks of face and fingers are less consistent between people than those of the limbs.
LANDMARK_TRUST = torch.tensor([0.3] * 11 + [1.0] * 6 + [0.3] * 6 + [1.0] * 6 + [0.5] * 4)


class Refiner:
    """Refines poses of one body; holds what can be computed once."""

    def __init__(self, rig: Rig, body: Body, surface_points: int = 80, trust: Trust | None = None):
        self.rig = rig
        self.trust = trust or Trust()
        self.landmark_count = len(body.regressor_names("mediapipe33"))
        landmarks = Points(body, body.regressor("mediapipe33"))
        # The first of farthest-first points are themselves evenly spread.
        self.surface = rig.vertex_indices[:surface_points]
        self.points = Points.joined(landmarks, Points(body, self.surface))

    def refine(self, pose: Pose, evidence: Evidence, held: Held | None = None, steps: int = 4) -> Pose:
        """The refined poses; camera axes (x right, y down, z forward), one row of evidence per pose."""
        start = pose
        if held is not None:
            held = self._sampled(held)
        surface = self.rig.linearise(self.points, pose).points[:, self.landmark_count :] - pose.translation[:, None]
        for _ in range(steps):
            pose = self._step(pose, evidence, held, start, surface)
        return pose

    def _sampled(self, held: Held) -> _Sampled:
        every = held.which.nonzero()[:, 0]
        chosen = every[torch.linspace(0, len(every) - 1, min(HELD_POINTS, len(every))).round().long()]
        return _Sampled(held.vertices[:, chosen], Points(self.rig.body, chosen))

    def _step(self, pose: Pose, evidence: Evidence, held: _Sampled | None, start: Pose, surface: Tensor) -> Pose:
        now = self.rig.linearise(self.points, pose)
        parts = [self._seen(now, evidence), self._kept(now, pose, surface)]
        if held is not None:
            parts.append(self._held(pose, held))
        jacobian = torch.cat([part[0] for part in parts], dim=1)
        residual = torch.cat([part[1] for part in parts], dim=1)
        normal = jacobian.mT @ jacobian
        right = (jacobian.mT @ residual[..., None])[..., 0]
        turns = 3 * self.rig.group_count
        diagonal = normal.new_full((normal.shape[-1],), 1e-3)
        diagonal[:turns] = 1.0
        diagonal[turns:-3] = self.trust.shape**-2
        right[:, turns:-3] += self.trust.shape**-2 * (start.shape - pose.shape)
        return self.rig.moved(pose, torch.linalg.solve(normal + torch.diag(diagonal), right))

    def _seen(self, now: Linearised, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Whitened residuals (B,66) and their Jacobian: landmarks against the picture."""
        count = self.landmark_count
        points = now.points[:, :count]
        depth = points[..., 2:].clamp_min(0.1)
        projected = evidence.focal_length * points[..., :2] / depth
        difference = (evidence.landmarks - projected) / evidence.box_side[:, None, None]
        # Geman–McClure: weight (1 + r²/c²)⁻².
        robust = (1 + difference.square().sum(-1) / self.trust.outlier**2) ** -2
        weight = (robust * evidence.weights * LANDMARK_TRUST.to(robust)).sqrt() / self.trust.landmark
        jacobian = now.jacobian()[:, :count]
        plane, forward = jacobian[..., :2, :], jacobian[..., 2:, :]
        scale = evidence.focal_length / depth / evidence.box_side[:, None, None]
        by_pixel = scale[..., None] * (plane - (points[..., :2] / depth)[..., None] * forward)
        return (weight[..., None, None] * by_pixel).flatten(1, 2), (weight[..., None] * difference).flatten(1)

    def _kept(self, now: Linearised, pose: Pose, surface: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened residuals (B,3P): the surface against the hypothesis, wherever the body stands."""
        count = self.landmark_count
        difference = surface - (now.points[:, count:] - pose.translation[:, None])
        jacobian = now.jacobian()[:, count:].clone()
        jacobian[..., -3:] = 0
        return jacobian.flatten(1, 2) / self.trust.surface, difference.flatten(1) / self.trust.surface

    def _held(self, pose: Pose, held: _Sampled) -> tuple[Tensor, Tensor]:
        """Whitened residuals (B,3H): vertices that must stay, against where they were."""
        now = self.rig.linearise(held.points, pose)
        difference = (held.vertices - now.points) / self.trust.held
        return now.jacobian().flatten(1, 2) / self.trust.held, difference.flatten(1)


def landmark_trust(landmarks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """How much each landmark (J, 3) of a picture of this size (width, height) counts when a body is placed, (J,).

    That is its visibility; little where it is extrapolated beyond the frame.
    """
    inside = ((landmarks[:, :2] >= 0) & (landmarks[:, :2] <= np.array(size))).all(axis=1)
    return np.clip(landmarks[:, 2], 0, 1) * np.where(inside, 1.0, 0.1)


@torch.no_grad()
def refined(
    refiner: Refiner,
    vertices: np.ndarray,
    landmarks: np.ndarray,
    fit: Framing | None,
    anchor: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    """Vertices (N, V, 3) of the rigs under meshes (N, V, 3) in camera space, moved onto a person's landmarks (33, 3).

    fit: where the landmarks are; None where there are none. anchor: vertices (V, 3), and which of them (V,) bool must
    stay where they are.
    """
    count = len(vertices)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(array, np.float32))

    if fit is None:
        nothing = torch.zeros(count, LANDMARKS)
        evidence = Evidence(nothing[..., None].expand(-1, -1, 2), nothing, 1.0, torch.ones(count))
    else:
        pixels = landmarks[:, :2] - np.array(fit.size) / 2
        # Landmarks that the detector doubts are several times as far off: their squared errors decide.
        weights = landmark_trust(landmarks, fit.size) ** DOUBT
        evidence = Evidence(
            tensor(np.repeat(pixels[None], count, axis=0)),
            tensor(np.repeat(weights[None], count, axis=0)),
            fit.focal_length,
            torch.full((count,), float(fit.crop.side)),
        )
    pose = refiner.rig.fit(tensor(vertices))
    held = None
    if anchor is not None:
        held = Held(tensor(np.repeat(anchor[0][None], count, axis=0)), torch.as_tensor(anchor[1]))
        # The same person: whoever keeps an arm keeps its length.
        own = refiner.rig.fit(tensor(anchor[0][None]))
        pose = replace(pose, shape=own.shape.expand_as(pose.shape))
    if fit is not None or held is not None:
        pose = refiner.refine(pose, evidence, held, STEPS if held is None else HELD_STEPS)
    return pose.vertices(refiner.rig.body).numpy()
