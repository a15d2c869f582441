"""Camera space (x right, y down, z forward) ↔ Blender's space (x right, y away, z up). Metres in both."""

from __future__ import annotations

import math

import numpy as np

CAMERA_ROTATION = (math.pi / 2, 0.0, 0.0)
"""Euler angles of a Blender camera that looks along +Y, as camera space's z does."""


def to_blender(points: np.ndarray) -> np.ndarray:
    """(…,3) camera space → (…,3) Blender's space."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


def to_camera(points: np.ndarray) -> np.ndarray:
    """(…,3) Blender's space → (…,3) camera space: the inverse of `to_blender`."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)
