"""Renders the example picture: `python -m tools.render_example [examples/people.jpg]` (needs the `bpy` package).

Three people in poses written down here, dressed and lit by `train.data.render`. The camera's focal length is the
picture's width; it stands 1.1 m above the floor.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from mega_backend.body import Body
from mega_backend.rotations import quaternion_from_axis_angle
from train.data.mocap import JOINTS
from train.data.render import Outfit, Scene, render
from train.data.retarget import Retargeter

CAMERA_HEIGHT = 1.1

# Degrees about X, Y, Z (an axis-angle vector) of joints from the T-pose that faces +Z.
LUNGE = {
    "pelvis": (0, 25, 0),
    "left_hip": (-80, 0, 10),
    "left_knee": (75, 0, 0),
    "right_hip": (25, 0, -5),
    "right_knee": (20, 0, 0),
    "right_ankle": (-25, 0, 0),
    "spine2": (-8, -15, 0),
    "left_shoulder": (0, 20, 12),
    "right_shoulder": (0, 20, -15),
    "head": (0, -15, 0),
}
WAVING = {
    "pelvis": (0, -20, 0),
    "left_hip": (-20, 0, 5),
    "left_knee": (15, 0, 0),
    "right_hip": (8, 0, -5),
    "right_knee": (10, 0, 0),
    "left_shoulder": (0, 0, -70),
    "left_elbow": (0, -35, 0),
    "right_shoulder": (0, 0, -35),
    "right_elbow": (0, 0, -65),
    "spine3": (0, 0, 6),
    "head": (0, 0, -8),
}
HANDS_ON_HIPS = {
    "pelvis": (0, 5, 0),
    "left_hip": (0, 0, 10),
    "right_hip": (0, 0, -10),
    "left_shoulder": (0, 25, -48),
    "left_elbow": (0, -40, -95),
    "right_shoulder": (0, -25, 48),
    "right_elbow": (0, 40, 95),
    "head": (0, 12, 0),
}


def people(body: Body) -> list[np.ndarray]:
    """Vertices (V,3) of each person in camera space, feet on the floor."""
    placed = [(LUNGE, (-1.15, 4.2), 0.3), (WAVING, (0.1, 3.7), 0.7), (HANDS_ON_HIPS, (1.2, 4.3), 0.5)]
    facing = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    retarget = Retargeter(body)
    result = []
    for seed, (pose, (x, z), heaviness) in enumerate(placed):
        turns = torch.zeros(1, len(JOINTS), 3)
        for joint, degrees in pose.items():
            turns[0, JOINTS.index(joint)] = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
        rotations = retarget(quaternion_from_axis_angle(turns))
        vertices = body.skin(rotations, _adult(body, seed, heaviness))[0]
        vertices = vertices - torch.tensor([vertices[:, 0].mean(), vertices[:, 1].min(), vertices[:, 2].mean()])
        result.append((vertices @ facing.T + torch.tensor([x, CAMERA_HEIGHT, z])).numpy())
    return result


def _adult(body: Body, seed: int, weight: float) -> torch.Tensor:
    """Shape (1,S) of the person of the population's bank that is nearest to a wanted adult."""
    wanted = {"gender": float(seed % 2), "age": 0.6, "weight": weight, "height": 0.55, "muscle": 0.5}
    columns = [body.phenotype_names.index(name) for name in wanted]
    distance = (body.phenotype_bank[:, columns] - torch.tensor(list(wanted.values()))).norm(dim=1)
    return body.shape_bank[distance.argmin()][None]


def scene(body: Body) -> Scene:
    """The example scene."""
    outfits = [
        Outfit(
            (0.56, 0.35, 0.25), (0.02, 0.015, 0.01), (0.05, 0.16, 0.32), (0.02, 0.02, 0.025), (0.5, 0.5, 0.5), 0.3, 1.0
        ),
        Outfit(
            (0.74, 0.50, 0.39), (0.30, 0.16, 0.06), (0.55, 0.10, 0.06), (0.06, 0.09, 0.20), (0.15, 0.1, 0.08), 0.9, 1.0
        ),
        Outfit(
            (0.20, 0.11, 0.07), (0.01, 0.01, 0.01), (0.55, 0.42, 0.10), (0.10, 0.13, 0.09), (0.4, 0.4, 0.4), 0.4, 0.55
        ),
    ]
    return Scene(people(body), outfits, size=(1200, 900), focal_length=1200.0, floor=-CAMERA_HEIGHT, sun_strength=2.2)


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/people.jpg")
    body = Body.bundled()
    rest = body.mean.numpy(), body.quads.numpy(), body.vertex_part.numpy(), body.part_names
    render(scene(body), rest, path, samples=32)
    print(path)


if __name__ == "__main__":
    main()
