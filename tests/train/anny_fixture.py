"""Pictures of Anny bodies without a renderer: joints as dots under a perspective camera, exactly annotated."""

from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from mega_backend.rotations import matrix_from_axis_angle
from train.data import annotations
from train.data.anny import AnnyBodies

SIZE, FOCAL, DISTANCE = 64, 90.0, 3.0


def write(folder: Path, count: int, seed: int = 0) -> tuple[annotations.Annotations, np.ndarray]:
    """folder/people.npz and folder/pictures; returns the table and MediaPipe's landmarks in pixels (count, 33, 2)."""
    bodies, random = AnnyBodies(), np.random.default_rng(seed)
    pose = random.normal(0, 0.25, (count, 66))
    yaw = Rotation.from_rotvec(np.outer(random.uniform(-1, 1, count), [0, 1, 0]))
    pose[:, :3] = (Rotation.from_rotvec([np.pi, 0, 0]) * yaw).as_rotvec()
    pose = pose.astype(np.float32)
    shape = bodies.body.shape_bank[:count]
    numbers = torch.from_numpy(pose)
    mesh = bodies.canonical(numbers[:, 3:], shape) @ matrix_from_axis_angle(numbers[:, :3]).mT

    def pixels(points: torch.Tensor) -> np.ndarray:
        points = points.numpy() + np.array([0.05, 0.1, DISTANCE])
        return FOCAL * points[..., :2] / points[..., 2:] + SIZE / 2

    joints, landmarks = pixels(bodies.joints(mesh)), pixels(bodies.body.joints(mesh, "mediapipe33"))
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for row in range(count):
        picture = random.integers(0, 60, (SIZE, SIZE, 3)).astype(np.uint8)
        for number, (x, y) in enumerate(joints[row]):
            colour = np.random.default_rng(number).integers(80, 256, 3).tolist()
            cv2.circle(picture, (int(x), int(y)), 3, colour, -1)
        cv2.imwrite(str(folder / "pictures" / f"{row}.png"), picture)
    table = annotations.Annotations(
        names=np.array([f"{row}.png" for row in range(count)]),
        centre=np.full((count, 2), SIZE / 2),
        side=np.full(count, float(SIZE)),
        pose=pose,
        shape=shape.numpy(),
        gender=np.zeros(count, np.int64),
        joints=np.concatenate([joints, np.ones((count, 17, 1))], 2),
        joint_set="h36m",
        body="anny",
    )
    annotations.write(folder / "people.npz", table, "training")
    return table, landmarks
