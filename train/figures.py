"""Pictures for the training log: bodies side by side, meshes over crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mega_backend import camera, overlay

FOCAL_PER_SIDE = 1000 / 224
"""A long lens, so that the perspective of the renderer is nearly the weak perspective of the models."""


def compare(columns: Sequence[np.ndarray], faces: np.ndarray, side: int = 160) -> np.ndarray:
    """Canonical bodies (B, V, 3) of each column, a row for each body, from front and side: (H, W, 3) uint8."""
    rows = []
    for bodies in zip(*columns, strict=True):
        turned = [body * [1, -1, -1] for body in bodies]
        rows.append(np.concatenate([overlay.views(body, faces, (0, 90), side) for body in turned], axis=1))
    return np.concatenate(rows)


def over_crop(crop: np.ndarray, vertices: np.ndarray, weak: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """A crop (S, S, 3) uint8 with a mesh drawn over it.

    Args:
        vertices: (V, 3) in camera axes, not yet placed. weak: (3,) the crop's weak perspective s, tx, ty.
    """
    side = len(crop)
    focal, middle = FOCAL_PER_SIDE * side, np.full(2, side / 2)
    placed = vertices + camera.weak_to_full(weak, middle, side, focal, (side, side))
    mesh = overlay.Mesh(placed.astype(np.float32), faces, overlay.PALETTE[0])
    return overlay.render([mesh], focal, crop, 0.85)
