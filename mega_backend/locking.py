"""Locked body parts stay exactly where they are; the rest of the mesh follows to them smoothly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

ROUNDS, LASTING = 60, 0.97
"""How far a correction spreads from a locked part: steps over edges, and what is left of it after each."""
PART_GROUPS = {
    "arms": ("left_arm", "right_arm", "left_hand", "right_hand"),
    "hands": ("left_hand", "right_hand"),
    "legs": ("left_leg", "right_leg", "left_foot", "right_foot"),
    "feet": ("left_foot", "right_foot"),
}
"""Names for several body parts at once, beside the body's own part names."""


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


def part_numbers(names: Sequence[str], part_names: Sequence[str]) -> list[int]:
    """Numbers of the body parts, and groups of parts, with these names; ValueError for a name that there is not."""
    wanted: list[str] = []
    for name in names:
        if name not in part_names and name not in PART_GROUPS:
            raise ValueError(f"there is no body part '{name}': choose from {', '.join([*PART_GROUPS, *part_names])}")
        wanted += PART_GROUPS.get(name, (name,))
    return sorted({list(part_names).index(name) for name in wanted})
