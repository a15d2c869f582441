"""Locked vertices stay, the others follow smoothly and far ones not at all."""

import numpy as np

from mega_backend.locking import hold, neighbour_means


def strip(length: int = 200, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A flat strip of triangles: vertices (V, 3), one unit apart, and faces."""
    x, y = np.meshgrid(np.arange(length), np.arange(width), indexing="ij")
    corner = (x * width + y)[:-1, :-1].ravel()
    one = np.stack([corner, corner + width, corner + 1], 1)
    other = np.stack([corner + 1, corner + width, corner + width + 1], 1)
    vertices = np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3).astype(np.float32)
    return vertices, np.concatenate([one, other])


def test_locked_vertices_lie_in_their_places_and_the_rest_follows():
    places, faces = strip()
    locked = places[:, 0] < 20
    shifts = np.array([[0, 0, 1], [0, 3, 0]], np.float32)
    moved = places[None] + shifts[:, None]
    held = hold(moved, places, locked, neighbour_means(faces, len(places)))
    assert np.array_equal(held[:, locked], np.repeat(places[None, locked], 2, 0))
    rows = held.reshape(2, -1, 5, 3).mean(2)
    # From the seam on the correction fades steadily; nowhere is there a step.
    lift = rows[0, :, 2]
    assert (np.diff(lift) > -1e-6).all() and np.diff(lift).max() < 0.3
    assert lift[-1] == 1.0 and 0.05 < lift[21] < 0.5


def test_nothing_moves_where_nothing_is_wrong():
    places, faces = strip(30)
    locked = places[:, 0] < 5
    held = hold(places[None].copy(), places, locked, neighbour_means(faces, len(places)))
    assert np.allclose(held[0], places, atol=1e-6)
