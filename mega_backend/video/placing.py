"""Where a body stands along a clip: on its landmarks in every frame, at a calm distance, on feet that stand.

One picture says precisely in which direction somebody is and only roughly how far away. A foot that keeps its place
says how the body moves over it. Places of all frames together are the least squares of both, and of a smooth way; all
of it is linear, and banded along time. Camera axes, metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import solveh_banded

from .smoothing import smooth

POINTS = [29, 31, 30, 32]
"""Landmarks of heel and toe, left before right."""
STILL = 0.12
"""Heights of a person a second: a heel or toe that moves so fast in the picture stands or moves, as likely as not."""
STANDING_SPEED = 0.4
"""Metres a second in space from which on a point that seems to stand is believed less and less."""
HOLD = 0.3
"""Seconds: a standing foot that moves by 1 m/s is as bad as a body that is so many metres beside its landmarks."""
CALM = 6.0
"""Distance is smoothed with the cut-off of the directions over this."""


def contacts(times: np.ndarray, landmarks: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How surely (F, 4) in [0, 1] heels and toes (`POINTS`) stand, from how they move in the picture.

    Args:
        landmarks: (F, 33, 3) pixels and visibility. known: (F,) bool, which frames have landmarks.
    """
    result = np.zeros((len(times), len(POINTS)))
    if known.sum() < 3:
        return result
    moments, seen = times[known], landmarks[known].astype(np.float64)
    size = np.maximum(np.ptp(seen[..., :2], axis=1).max(1), 1.0)
    # Nobody grows from frame to frame: a calm size keeps the measure of speed calm.
    size = smooth(size, moments, np.ones(len(moments)), 0.5).clip(1.0)
    place = smooth(seen[:, POINTS, :2], moments, np.ones(len(moments)), 4.0)
    speed = np.linalg.norm(np.gradient(place, moments, axis=0), axis=-1) / size[:, None]
    result[known] = seen[:, POINTS, 2].clip(0, 1) / (1 + (speed / STILL) ** 4)
    return result


def placed(
    places: np.ndarray, times: np.ndarray, weights: np.ndarray, feet: np.ndarray, standing: np.ndarray, cutoff: float
) -> np.ndarray:
    """Places (F, 3) of a body.

    Args:
        places: (F, 3) as each frame alone says. weights: (F,) ≥ 0: how well the body was seen, 0 in a gap.
        times: (F,) seconds, growing. cutoff: hertz, of motion across the picture.
        feet: (F, K, 3) points of the feet against the places. standing: (F, K) in [0, 1] how surely each stands.
    """
    count = len(times)
    known = weights > 0
    filled = np.stack([np.interp(times, times[known], column[known]) for column in places.T], axis=1)
    if count < 3:
        return filled
    step = np.gradient(times)
    # What a frame says across its line of sight counts fully, what it says along it as befits the lower cut-off.
    ray = filled / np.linalg.norm(filled, axis=1, keepdims=True)
    along = ray[:, :, None] * ray[:, None]
    frame = np.eye(3) - along + CALM**-4 * along
    frame = frame * (np.maximum(weights, 1e-6) * step)[:, None, None]
    result = filled
    for _ in range(3):
        system = _Banded(count)
        system.add_frames(frame, filled)
        system.add_accelerations(times, (2 * np.pi * cutoff) ** -4)
        span = np.diff(times)[:, None]
        velocity = np.diff(result[:, None] + feet, axis=0) / span[..., None]
        believed = np.minimum(standing[1:], standing[:-1])
        believed = believed / (1 + np.square(velocity).sum(-1) / STANDING_SPEED**2) ** 2
        system.add_standing(believed * HOLD**2 / span, np.diff(feet, axis=0))
        result = system.solve()
    return result


class _Banded:
    """Normal equations of 3 numbers for each frame, in the upper band form of `solveh_banded`."""

    def __init__(self, frames: int) -> None:
        self.bands = np.zeros((9, 3 * frames))  # bands[8] is the diagonal; frames two apart still meet
        self.right = np.zeros((frames, 3))

    def add_frames(self, weight: np.ndarray, target: np.ndarray) -> None:
        """(x − target)ᵀ weight (x − target) in each frame; weight (F, 3, 3)."""
        for a in range(3):
            for b in range(a, 3):
                self.bands[8 - (b - a), b::3] += weight[:, a, b]
        self.right += (weight @ target[..., None])[..., 0]

    def add_accelerations(self, times: np.ndarray, strength: float) -> None:
        """strength · ∫ |x″|²."""
        left, right = np.diff(times)[:-1], np.diff(times)[1:]
        span = (left + right) / 2
        rows = np.stack([1 / (left * span), -1 / (left * span) - 1 / (right * span), 1 / (right * span)])
        rows = rows * np.sqrt(strength * span)
        for a in range(3):
            for b in range(a, 3):
                self._pairs(slice(b, b + len(span)), b - a, rows[a] * rows[b])

    def add_standing(self, weight: np.ndarray, moved: np.ndarray) -> None:
        """weight · |x(t+1) − x(t) + moved|² for feet; weight (F − 1, K), moved (F − 1, K, 3)."""
        total, pull = weight.sum(1), (weight[..., None] * moved).sum(1)
        frames = len(total)
        self._pairs(slice(0, frames), 0, total)
        self._pairs(slice(1, frames + 1), 0, total)
        self._pairs(slice(1, frames + 1), 1, -total)
        self.right[:-1] += pull
        self.right[1:] -= pull

    def _pairs(self, later: slice, apart: int, values: np.ndarray) -> None:
        """Add the same number for all three axes to the pairs of frames that end at `later`."""
        for axis in range(3):
            self.bands[8 - 3 * apart, 3 * later.start + axis : 3 * later.stop : 3] += values

    def solve(self) -> np.ndarray:
        return solveh_banded(self.bands, self.right.ravel()).reshape(-1, 3)


def held(times: np.ndarray, feet: np.ndarray, standing: np.ndarray, most: float = 0.1) -> np.ndarray:
    """Where each foot should be moved (F, 2, 3) so that what stands keeps its place; nothing where it swings.

    Args:
        feet: (F, 4, 3) heels and toes (`POINTS`) in space. standing: (F, 4). most: metres.
    """
    moves = np.zeros((len(times), 2, 3))
    for foot in range(2):
        wanted, weight = np.zeros((len(times), 3)), np.zeros(len(times))
        for point in (2 * foot, 2 * foot + 1):
            for start, stop in runs(standing[:, point] > 0.5):
                if times[stop - 1] - times[start] < 0.1:
                    continue
                own = standing[start:stop, point]
                place = feet[start:stop, point]
                middle = (own[:, None] * place).sum(0) / own.sum()
                wanted[start:stop] += own[:, None] * (middle - place)
                weight[start:stop] += own
        if weight.any():
            target = wanted / np.maximum(weight, 1e-6)[:, None]
            target *= np.minimum(1, most / np.maximum(np.linalg.norm(target, axis=1, keepdims=True), 1e-9))
            # Fully there while it stands; between steps the foot is free, and the way in and out is soft.
            moves[:, foot] = smooth(target, times, np.where(weight > 0, 30.0, 0.05), 8.0)
    return moves


def runs(flags: Sequence[bool] | np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of the stretches of true in flags (F,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(flags).astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def bend_leg(hip: np.ndarray, knee: np.ndarray, ankle: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns (F, 3, 3) of thigh and shin, in the world, that bring the ankle to the target or as near as it reaches.

    hip, knee, ankle, target: (F, 3). The knee stays in the plane that it bends in.
    """
    thigh, shin = np.linalg.norm(knee - hip, axis=1), np.linalg.norm(ankle - knee, axis=1)
    before = np.linalg.norm(ankle - hip, axis=1)
    # A leg is never stretched quite straight, nor folded flat.
    reach = np.linalg.norm(target - hip, axis=1).clip(
        np.abs(thigh - shin) + 1e-3, np.maximum(0.999 * (thigh + shin), before)
    )
    axis = np.cross(knee - hip, ankle - knee)
    size = np.linalg.norm(axis, axis=1, keepdims=True)
    straight = size[:, 0] < 1e-6
    axis = np.where(size > 1e-6, axis / np.maximum(size, 1e-9), 0.0)

    def corner(a: np.ndarray, b: np.ndarray, opposite: np.ndarray) -> np.ndarray:
        return np.arccos(((a**2 + b**2 - opposite**2) / (2 * a * b)).clip(-1, 1))

    at_hip = corner(thigh, reach, shin) - corner(thigh, before, shin)
    at_knee = corner(thigh, shin, reach) - corner(thigh, shin, before)
    at_hip, at_knee = np.where(straight, 0.0, at_hip), np.where(straight, 0.0, at_knee)
    # Thigh turned against the bend by the change at the hip; the shin follows and opens by the change at the knee.
    upper = _about(axis, -at_hip)
    lower = _about(axis, -at_hip - at_knee)
    moved = hip + _turned(upper, knee - hip) + _turned(lower, ankle - knee)
    aim = _between(moved - hip, target - hip)
    return aim @ upper, aim @ lower


def _turned(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return (matrix @ vector[..., None])[..., 0]


def _about(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotations (F, 3, 3) about unit axes (F, 3) by angles (F,)."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(axis * angle[:, None]).as_matrix()


def _between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The smallest rotations (F, 3, 3) from directions to directions (F, 3)."""
    a = first / np.linalg.norm(first, axis=1, keepdims=True)
    b = second / np.linalg.norm(second, axis=1, keepdims=True)
    cross = np.cross(a, b)
    sine = np.linalg.norm(cross, axis=1)
    angle = np.arctan2(sine, (a * b).sum(1))
    axis = np.where(sine[:, None] > 1e-9, cross / np.maximum(sine, 1e-9)[:, None], [1.0, 0.0, 0.0])
    return _about(axis, angle)
