"""Smoothing without delay, and the filling of gaps: the smoothest curve that stays near what was seen.

Whittaker's smoother: minimise Σ w (x − y)² + λ ∫ x″². Times may be uneven, and a weight of zero is a gap, which is
filled from both sides. The curve follows slow motion fully and halves what swings at the cut-off frequency.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solveh_banded

CUTOFFS = {"off": None, "light": 2.0, "strong": 1.5}
"""Hertz at which motion is halved."""


def smooth(values: np.ndarray, times: np.ndarray, weights: np.ndarray, cutoff: float | None) -> np.ndarray:
    """Smoothed values.

    Args:
        values: (F, …) any numbers; rows of weight 0 may hold anything finite.
        times: (F,) seconds, growing.
        weights: (F,) ≥ 0, 1 for a row that is trusted; at least one positive.
        cutoff: hertz; None only fills gaps, rows with weight stay.
    """
    values, times = np.asarray(values, np.float64), np.asarray(times, np.float64)
    weights = np.asarray(weights, np.float64)
    if not (weights > 0).all():
        known = np.flatnonzero(weights > 0)
        flat = values.reshape(len(values), -1)
        filled = np.stack([np.interp(times, times[known], column[known]) for column in flat.T], axis=1)
        values = filled.reshape(values.shape)
    count = len(values)
    if cutoff is None or count < 3:
        return values.copy()
    # x″ at uneven times: three weights for each inner frame.
    left, right = np.diff(times)[:-1], np.diff(times)[1:]
    span = (left + right) / 2
    rows = np.stack([1 / (left * span), -1 / (left * span) - 1 / (right * span), 1 / (right * span)])
    # Σ w (x−y)² Δt + λ Σ x″² Δt halves cos ωt where λ ω⁴ = 1.
    strength = (2 * np.pi * cutoff) ** -4
    steps = np.gradient(times)
    scaled = rows * np.sqrt(strength * span)
    bands = np.zeros((3, count))  # upper form: bands[2] is the diagonal
    bands[2] = np.maximum(weights, 1e-6) * steps
    for a in range(3):
        for b in range(a, 3):
            products = scaled[a] * scaled[b]
            bands[2 - (b - a), b : b + count - 2] += products
    right_side = (np.maximum(weights, 1e-6) * steps)[:, None] * values.reshape(count, -1)
    return solveh_banded(bands, right_side).reshape(values.shape)


def smooth_rotations(rotations: np.ndarray, times: np.ndarray, weights: np.ndarray, cutoff: float | None) -> np.ndarray:
    """Smoothed rotations (F, J, 3, 3); weights (F, J). Matrices are smoothed as they are and made rotations again,
    which is right as long as neighbours lie well within a half turn of each other."""
    result = np.empty_like(rotations, dtype=np.float64)
    for joint in range(rotations.shape[1]):
        result[:, joint] = smooth(rotations[:, joint], times, weights[:, joint], cutoff)
    return nearest_rotations(result)


def nearest_rotations(matrices: np.ndarray) -> np.ndarray:
    """The rotations (…, 3, 3) nearest to matrices (…, 3, 3)."""
    u, _, v = np.linalg.svd(matrices)
    u[..., :, 2] *= np.sign(np.linalg.det(u @ v))[..., None]
    return u @ v
