"""MediaPipe's 33 landmarks in pictures of Anny bodies, out of the annotated body and its annotated joints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mega_backend.rotations import matrix_from_axis_angle
from train.data.annotations import Annotations
from train.data.anny import AnnyBodies

HIPS = (23, 24)
TOLERANCE = 0.01
"""Largest error, in box sides, with which a person's camera may explain the annotated joints."""


def placed(bodies: AnnyBodies, pose: Tensor, shape: Tensor, name: str = "mediapipe33") -> Tensor:
    """Joints (B, J, 3) in camera axes, metres, hip-centred, of bodies with pose (B, 66) and shape (B, S)."""
    rotations = bodies.rotations(torch.cat([torch.zeros_like(pose[:, :3]), pose[:, 3:66]], 1))
    points = bodies.body.skin_joints(rotations, shape, name)
    points = points - bodies.body.skin_joints(rotations, shape, "mediapipe33")[:, HIPS].mean(1, keepdim=True)
    return points @ matrix_from_axis_angle(pose[:, :3]).mT


def with_landmarks(table: Annotations, bodies: AnnyBodies, chunk: int = 500) -> Annotations:
    """The table with the 33 landmarks as its joints (joint set "landmarks33").

    A file does not say which camera saw a person, but its joints do: position, focal length and principal point are
    fitted to the 17 annotated joints and then project the landmarks. Landmarks of people whom no camera explains to
    `TOLERANCE` get confidence 0.
    """
    parts = []
    for start in range(0, len(table), chunk):
        rows = table.select(slice(start, start + chunk))
        pose, shape = torch.from_numpy(rows.pose), torch.from_numpy(rows.shape)
        rotations = bodies.rotations(torch.cat([torch.zeros_like(pose[:, :3]), pose[:, 3:66]], 1))
        vertices = bodies.body.skin(rotations, shape)
        turn = matrix_from_axis_angle(pose[:, :3]).mT
        joints, landmarks = (
            (points @ turn).numpy().astype(np.float64)
            for points in (bodies.joints(vertices), bodies.body.joints(vertices, "mediapipe33"))
        )
        # A box far from the picture's corner would make the equations ill-conditioned: measure in boxes.
        known = (rows.joints[..., :2] - rows.centre[:, None]) / rows.side[:, None, None]
        for person in range(len(rows)):
            weight = (rows.joints[person, :, 2] > 0).astype(np.float64)
            camera = _fit(joints[person], known[person].astype(np.float64), weight)
            error = np.abs(_project(camera, joints[person]) - known[person]) * weight[:, None]
            pixels = _project(camera, landmarks[person]) * rows.side[person] + rows.centre[person]
            parts.append(np.column_stack([pixels, np.full(33, float(error.max() < TOLERANCE))]))
    return replace(table, joints=np.stack(parts).astype(np.float32), joint_set="landmarks33")


def _fit(points: np.ndarray, seen: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Camera (6,): f, a, b, cx, cy, d with u (z + d) = f x + a + cx z and v (z + d) = f y + b + cy z, for points (J, 3)
    seen at (J, 2). The equations are linear in all six."""
    x, y, z = points.T
    zero, one = np.zeros_like(x), np.ones_like(x)
    u, v = seen.T
    rows = [
        np.stack([x, one, zero, z, zero, -u], 1) * weight[:, None],
        np.stack([y, zero, one, zero, z, -v], 1) * weight[:, None],
    ]
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate([u * z * weight, v * z * weight]), rcond=None)[0]


def _project(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    focal, a, b, cx, cy, d = camera
    x, y, z = points.T
    return np.stack([focal * x + a + cx * z, focal * y + b + cy * z], 1) / (z + d)[:, None]
