"""Cameras: from the crop that a model saw to the full picture, and the best place for a body in it.

Camera coordinates: x right, y down, z forward, metres; the principal point is the picture's centre. NumPy, float64.
"""

import numpy as np

FOCAL_PER_SIDE = 1000 / 224
"""Default focal length over the picture's longer side, as in the published programs: a long lens."""
NEAR = 0.1
"""No joint comes closer to the camera than this, metres."""


def default_focal_length(picture_size: tuple[int, int]) -> float:
    """Focal length in pixels that is assumed for a picture of this width and height."""
    return FOCAL_PER_SIDE * max(picture_size)


def project(points: np.ndarray, focal_length: float, picture_size: tuple[int, int]) -> np.ndarray:
    """Camera-frame points (…, 3) → pixels (…, 2)."""
    depth = np.maximum(points[..., 2:], 1e-6)
    return focal_length * points[..., :2] / depth + np.array(picture_size) / 2


def weak_to_full(
    camera: np.ndarray, centre: np.ndarray, side: float, focal_length: float, picture_size: tuple[int, int]
) -> np.ndarray:
    """Translation (…, 3) in the full picture's camera of a weak-perspective camera (…, 3) = s, tx, ty of a crop.

    With crop coordinates s · (X_xy + t), crop centre c and side b in pixels: z = 2f / (b s),
    x = 2 (c_x − W/2) / (b s) + t_x, y likewise (method of MEGA's and its predecessors' released programs).
    """
    scale = np.maximum(np.asarray(camera, np.float64)[..., :1], 1e-3)
    offset = 2 * (np.asarray(centre, np.float64) - np.array(picture_size) / 2) / (side * scale)
    return np.concatenate([offset + camera[..., 1:], 2 * focal_length / (side * scale)], axis=-1)


def full_to_weak(
    translation: np.ndarray, centre: np.ndarray, side: float, focal_length: float, picture_size: tuple[int, int]
) -> np.ndarray:
    """The inverse of `weak_to_full`."""
    scale = 2 * focal_length / (side * translation[..., 2:])
    offset = 2 * (np.asarray(centre, np.float64) - np.array(picture_size) / 2) / (side * scale)
    return np.concatenate([scale, translation[..., :2] - offset], axis=-1)


def view_rotation(centre: np.ndarray, focal_length: float, picture_size: tuple[int, int]) -> np.ndarray:
    """Rotation (3, 3) from a camera that looks at pixel `centre` (2,) to the picture's own camera.

    A crop says how a body is turned against the line of sight through the crop. This is the smallest rotation that
    takes the optical axis to that line.
    """
    offset = (np.asarray(centre, np.float64) - np.array(picture_size) / 2) / focal_length
    x, y, z = np.array([*offset, 1.0]) / np.sqrt(1 + (offset**2).sum())
    return np.array(
        [[1 - x * x / (1 + z), -x * y / (1 + z), x], [-x * y / (1 + z), 1 - y * y / (1 + z), y], [-x, -y, z]]
    )


def fit_translation(
    joints: np.ndarray,
    landmarks: np.ndarray,
    weights: np.ndarray,
    translation: np.ndarray,
    focal_length: float,
    picture_size: tuple[int, int],
    tolerance: float | np.ndarray,
    iterations: int = 10,
) -> np.ndarray:
    """Move bodies so that their joints project onto landmarks, in full perspective.

    Gauss–Newton on a robust distance (Geman–McClure), so that a landmark that is plainly wrong pulls little. The start
    is held on to weakly: where few landmarks are seen, distance stays what the model said.

    Args:
        joints: (N, J, 3) in camera axes, before translation.
        landmarks: (J, 2) pixels, or (N, J, 2).
        weights: (J,) or (N, J) ≥ 0; 0 for a landmark that is missing.
        translation: (N, 3) to start from.
        tolerance: pixels by which a good landmark may be off, or (N, 1).

    Returns:
        (N, 3).
    """
    joints, start = np.asarray(joints, np.float64), np.asarray(translation, np.float64)
    weights = np.asarray(weights, np.float64)
    nearest = NEAR - joints[..., 2].min(axis=1)
    start = start.copy()
    start[:, 2] = np.maximum(start[:, 2], nearest)
    # A prior as strong as one landmark: depth known to 30 %, the rest to 30 % of the depth's metres per pixel.
    doubt = 0.3 * start[:, 2:]
    current = start
    for _ in range(iterations):
        points = joints + current[:, None]
        x, y, z = points[..., 0], points[..., 1], np.maximum(points[..., 2], NEAR)
        error = project(points, focal_length, picture_size) - landmarks
        squared = (error**2).sum(-1) / tolerance**2
        # Geman–McClure with a scale of three tolerances.
        robust = weights / (1 + squared / 9) ** 2 / tolerance**2
        zero = np.zeros_like(x)
        jacobian = focal_length * np.stack(
            [np.stack([1 / z, zero, -x / z**2], -1), np.stack([zero, 1 / z, -y / z**2], -1)], -2
        )
        normal = np.einsum("nj,njki,njkl->nil", robust, jacobian, jacobian)
        gradient = np.einsum("nj,njki,njk->ni", robust, jacobian, error)
        normal += np.eye(3) / doubt[:, None] ** 2
        gradient += (current - start) / doubt**2
        current = current - np.linalg.solve(normal, gradient[..., None])[..., 0]
        current[:, 2] = np.maximum(current[:, 2], nearest)
    return current
