"""A ball as a mesh."""

import numpy as np
from scipy.spatial import ConvexHull


def ball() -> tuple[np.ndarray, np.ndarray]:
    """Vertices (2000, 3) on the unit sphere and triangles whose outside is outside."""
    points = np.random.default_rng(0).normal(size=(2000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    faces = ConvexHull(points).simplices
    a, b, c = (points[faces[:, i]] for i in range(3))
    inward = np.einsum("fi,fi->f", np.cross(b - a, c - a), a) < 0
    faces[inward] = faces[inward][:, ::-1]
    return points.astype(np.float32), faces
