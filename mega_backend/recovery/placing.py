"""Where a body stands in the picture: first where the model saw it in its crop, then onto the landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np

from mega_backend import camera
from mega_backend.people.landmarks import COCO17_LANDMARKS
from mega_backend.refinement import Framing, landmark_trust

LANDMARK_ERROR = 0.02
"""How far off a good landmark is, relative to the crop's side."""
_MAIN_JOINTS = list(range(5, 17))
"""Of the COCO joints: all but those of the face."""


def from_own_camera(rotation: np.ndarray, weak: np.ndarray, framing: Framing) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (…, 3, 3) and translations (…, 3) in the picture, of a model that gives rotations in its camera.

    The published models were trained so. rotation (…, 3, 3); weak (…, 3): weak-perspective camera of the crop.
    """
    crop, focal_length, size = framing
    return rotation, camera.weak_to_full(weak, np.array([crop.x, crop.y]), crop.side, focal_length, size)


def from_crops_camera(rotation: np.ndarray, weak: np.ndarray, framing: Framing) -> tuple[np.ndarray, np.ndarray]:
    """The same of a model that gives rotations against the line of sight through the crop."""
    crop, focal_length, size = framing
    view = camera.view_rotation(np.array([crop.x, crop.y]), focal_length, size)
    ahead = camera.weak_to_full(weak, np.array(size) / 2, crop.side, focal_length, size)
    return view @ rotation, ahead @ view.T


def onto_landmarks(joints: np.ndarray, landmarks: np.ndarray, framing: Framing, start: np.ndarray) -> np.ndarray:
    """Translations (N, 3) that bring COCO joints (N, 17, 3), turned but not moved, onto a person's landmarks (33, 3).

    start (N, 3): where the model says that the bodies are.
    """
    crop, focal_length, size = framing
    seen = landmarks[list(COCO17_LANDMARKS)]
    return camera.fit_translation(
        joints, seen[:, :2], landmark_trust(seen, size), start, focal_length, size, LANDMARK_ERROR * crop.side
    )


def landmark_errors(joints: np.ndarray, person: Any, focal_length: float, size: tuple[int, int]) -> np.ndarray:
    """(N,) mean distance of projected COCO joints (N, 17, 3) from a `Person`'s landmarks; see `Recoverer`."""
    seen = person.landmarks[[COCO17_LANDMARKS[row] for row in _MAIN_JOINTS]]
    chosen = (seen[:, 2] > 0.5) & (landmark_trust(seen, size) > 0.5)
    if not chosen.any():
        return np.full(person.hypotheses, np.nan)
    points = camera.project(joints, focal_length, size)[:, _MAIN_JOINTS]
    distance = np.linalg.norm(points - seen[:, :2], axis=-1)[:, chosen]
    side = max(person.box[2] - person.box[0], person.box[3] - person.box[1], 1)
    return distance.mean(axis=1) / side


def projected_box(vertices: np.ndarray, focal_length: float, size: tuple[int, int]) -> np.ndarray:
    """The box (4,) x0, y0, x1, y1 of a mesh (V, 3) in the picture, cut to it."""
    points = camera.project(vertices, focal_length, size)
    return np.clip([*points.min(0), *points.max(0)], 0, [*size, *size]).astype(np.float32)
