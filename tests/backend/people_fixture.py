"""Somebody in a picture without a picture: detections of the bundled body, made by projecting its landmarks."""

import numpy as np
import torch

from mega_backend import camera
from mega_backend.body import Body
from mega_backend.people import Detection, visible_box

SIZE = (640, 480)


def detections(count: int) -> list[Detection]:
    """Bodies at rest, side by side, facing the camera, in a picture of `SIZE`."""
    body = Body.bundled()
    vertices = body.rest(torch.zeros(1, body.shape_count))[0]
    points = body.joints(vertices - vertices.mean(1, keepdim=True), "mediapipe33")[0].numpy() * [1, -1, -1]
    found = []
    for number in range(count):
        placed = points + np.array([1.2 * (number - (count - 1) / 2), 0.1, 16.0])
        pixels = camera.project(placed, camera.default_focal_length(SIZE), SIZE)
        landmarks = np.concatenate([pixels, np.full((33, 1), 0.95)], axis=1).astype(np.float32)
        found.append(
            Detection(
                box=visible_box(landmarks, SIZE).astype(np.float32),
                landmarks=landmarks,
                landmarks_3d=(points - points[[23, 24]].mean(0)).astype(np.float32),
                score=0.9,
            )
        )
    return found
