"""One smooth motion through all hypotheses of all frames.

Every bone of every frame has N candidates. The motion is the smoothest one that stays near them (`smoothing.smooth`),
and which candidates count follows from the motion: those near it more than those far from it, the expected answer and
the chosen one more than the others. Both are settled in turn, expectation and maximisation of a mixture whose
components are the hypotheses. A limb that points the wrong way in a frame then takes part with the hypothesis that
points the right way. What is hidden counts little, and follows from the frames before and after.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .smoothing import nearest_rotations, smooth

EXPECTED, CHOSEN = 100.0, 10.0
"""How much more hypothesis 0, and the chosen one, count than each other, where all are as near. Samples spread as the
model doubts: each alone is far off, and in all frames of a person in the same direction."""
SPREAD = 0.3
"""Radians by which candidates usually differ from the motion."""
ROUNDS = 3
SLOW, ODD = (0.3, 0.6, 1.0), 1.0
"""What bones do over a while: hertz, one after the other, so that the ends of a stretch cannot bend the motion to
themselves; and radians from there at which a quarter of a bone's weight is left."""


def through(
    candidates: np.ndarray, chosen: np.ndarray, times: np.ndarray, weights: np.ndarray, cutoff: float | None
) -> np.ndarray:
    """World rotations (F, J, 3, 3) of a motion.

    Args:
        candidates: (F, N, J, 3, 3); frames of weight 0 may hold any rotations.
        chosen: (F,) numbers of the hypotheses that the path goes through.
        times: (F,) seconds, growing.
        weights: (F, J) in [0, 1]: how well each bone was seen; 0 for frames without a sighting.
        cutoff: hertz, as of `smooth`; None keeps the chosen hypotheses and only fills gaps.
    """
    frames, count = candidates.shape[:2]
    picked = candidates[np.arange(frames), chosen]
    if cutoff is None:
        return smoothed(picked, times, weights, None)
    preference = np.ones((frames, count))
    preference[:, 0] *= EXPECTED
    preference[np.arange(frames), chosen] *= CHOSEN
    preference /= preference.sum(1, keepdims=True)
    motion = smoothed((preference[..., None, None, None] * candidates).sum(1), times, weights, cutoff)
    for _ in range(ROUNDS):
        # Squared distance of matrices is 4 (1 − cos θ), about 2 θ².
        distance = np.square(candidates - motion[:, None]).sum((-1, -2)) / 2
        share = preference[..., None] * np.exp(-distance / (2 * SPREAD**2)) + 1e-9 * preference[..., None]
        share /= share.sum(1, keepdims=True)
        motion = smoothed((share[..., None, None] * candidates).sum(1), times, weights, cutoff)
    return motion


def believed(rotations: np.ndarray, times: np.ndarray, weights: np.ndarray, cutoff: float | None) -> np.ndarray:
    """How much (F, J) in [0, 1] bones are believed that differ from what they do before and after: somebody who is
    taken for a front for a moment, or who enters the picture and is not understood yet.

    Arguments as of `smoothed`, the trunk first. A slow motion that lets go of what is far from it judges.
    """
    result = np.ones(rotations.shape[:2])
    if cutoff is None:
        return result
    for slowness in SLOW:
        slow = smoothed(rotations, times, weights * result, slowness)
        distance = np.square(rotations - slow).sum((-1, -2)) / 2
        result = (1 + distance / ODD**2) ** -2
        # Who turns round as a whole for a moment is not believed in any limb.
        result = np.minimum(result, result[:, :1])
    return result


def smoothed(rotations: np.ndarray, times: np.ndarray, weights: np.ndarray, cutoff: float | None) -> np.ndarray:
    """Smoothed matrices (F, J, 3, 3), made rotations again; arguments as of `through`."""
    result = np.empty_like(rotations, dtype=np.float64)
    # Bones that are seen alike are smoothed together.
    for bones in _alike(weights):
        result[:, bones] = smooth(nearest_rotations(rotations[:, bones]), times, weights[:, bones[0]], cutoff)
    return nearest_rotations(result)


def _alike(weights: np.ndarray) -> list[list[int]]:
    """Columns of weights (F, J) that are equal, together."""
    found: dict[bytes, list[int]] = {}
    for column in range(weights.shape[1]):
        found.setdefault(np.ascontiguousarray(weights[:, column]).tobytes(), []).append(column)
    return list(found.values())


def bone_landmarks(names: Sequence[str]) -> list[tuple[int, ...]]:
    """For each bone the landmarks that show how it lies."""
    torso = (11, 12, 23, 24)
    kinds = {
        "upperleg": (25,), "lowerleg": (27,), "foot": (31, 29), "toe": (31, 29), "clavicle": (11,),
        "upperarm": (13,), "lowerarm": (15,), "wrist": (15, 19), "finger": (15, 19),
        "neck": (0, 7, 8), "head": (0, 7, 8),
    }  # fmt: skip
    result = []
    for name in names:
        marks = next((marks for prefix, marks in kinds.items() if name.startswith(prefix)), torso)
        result.append(tuple(mark + 1 for mark in marks) if name.endswith(".R") else marks)
    return result
