"""Locked body parts stay exactly where they are; the rest of the mesh follows to them smoothly."""

from __future__ import annotations

import numpy as np
from scipy import sparse

ROUNDS, LASTING = 60, 0.97
"""How far a correction spreads from a locked part: steps over edges, and what is left of it after each."""


def neighbour_means(faces: np.ndarray, count: int) -> sparse.csr_matrix:
    """(V, V): the mean over each vertex' neighbours along the edges of the faces (F, 3)."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    both = np.concatenate([edges, edges[:, ::-1]])
    linked = sparse.coo_matrix((np.ones(len(both), np.float32), both.T), shape=(count, count)).tocsr()
    linked.data[:] = 1.0
    return sparse.diags(1 / np.maximum(linked.sum(1).A1, 1)).astype(np.float32) @ linked


def hold(vertices: np.ndarray, places: np.ndarray, locked: np.ndarray, means: sparse.csr_matrix) -> np.ndarray:
    """Meshes whose locked vertices lie in their places.

    The correction of the locked vertices spreads over the others and fades, so that the seam stays as smooth as the
    meshes are.

    Args:
        vertices: (N, V, 3); places: (V, 3) where the locked vertices must be; locked: (V,) bool.
        means: of `neighbour_means`.
    """
    count, total, _ = vertices.shape
    correction = np.zeros((total, count, 3), np.float32)
    correction[locked] = (places[None, locked] - vertices[:, locked]).transpose(1, 0, 2)
    fixed = correction[locked]
    flat = correction.reshape(total, -1)
    for _ in range(ROUNDS):
        flat = LASTING * (means @ flat)
        flat[locked] = fixed.reshape(len(fixed), -1)
    held = vertices + flat.reshape(total, count, 3).transpose(1, 0, 2)
    held[:, locked] = places[locked]
    return held
