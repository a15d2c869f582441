"""The people of `train.data.photographs` as a training dataset of small pictures, one for each person.

    python -m train.data.photographs_as_dataset FOLDER OUT [--size 128]

Writes OUT/pictures and OUT/people.npz as `train.data.synthetic_pictures` does: the square around a person with some
room about it, scaled to `--size` pixels, and the body that is in it. People with fewer than six main joints in sight
are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from mega_backend.people.landmarks import MAIN
from mega_backend.rotations import axis_angle_from_quaternion
from train import command
from train.data import annotations
from train.data.annotations import Annotations
from train.data.anny import AnnyBodies
from train.data.photographs import Truth
from train.data.pictures import View, crop_matrix, cut, read_picture
from train.data.retarget import Retargeter
from train.data.sequences import join

ROOM = 1.35
"""Side of the picture over that of the person's box: what augmentation may move and enlarge the box by."""
MARGIN = 1.2


def people(truth: Truth, bodies: AnnyBodies, retarget: Retargeter, name: str, size: int) -> list[tuple]:
    """(map from the photograph (2, 3), annotations) of every person of a photograph who is in sight."""
    rotations, shape = truth.posed()
    pose = axis_angle_from_quaternion(retarget.joints(rotations)).flatten(1)
    root = Rotation.from_matrix(truth.camera_rotation) * Rotation.from_rotvec(pose[:, :3].numpy())
    turn = torch.from_numpy(truth.canonical_to_camera()).float()
    placed = bodies.canonical(pose[:, 3:], shape) @ turn.mT + torch.from_numpy(truth.translation).float()[:, None]
    found = []
    for person in range(len(shape)):
        if truth.seen[person, list(MAIN)].sum() < 6:
            continue
        pixels = _project(placed[person].numpy(), truth)
        low, high = np.clip(pixels.min(0), 0, truth.size), np.clip(pixels.max(0), 0, truth.size)
        side, centre = MARGIN * (high - low).max(), (low + high) / 2
        matrix = crop_matrix(centre, ROOM * side, size, View())
        joints = _project(bodies.joints(placed[person]).numpy(), truth) @ matrix[:, :2].T + matrix[:, 2]
        table = Annotations(
            names=np.array([f"{name}_{person}.jpg"]),
            centre=np.full((1, 2), size / 2),
            side=np.array([size / ROOM]),
            pose=np.concatenate([root[person].as_rotvec(), pose[person, 3:].numpy()])[None],
            shape=shape[person : person + 1].numpy(),
            gender=np.zeros(1, np.int64),
            joints=np.column_stack([joints, np.ones(len(joints))])[None],
            joint_set="h36m",
            body="anny",
        )
        found.append((matrix, table))
    return found


def _project(points: np.ndarray, truth: Truth) -> np.ndarray:
    """Pixels (…, 2) of points (…, 3) in camera axes."""
    return truth.focal_length * points[..., :2] / points[..., 2:] + truth.size / 2


def main(arguments: list[str] | None = None) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("folder", type=Path, help="what train.data.photographs wrote")
    cli.add_argument("out", type=Path)
    cli.add_argument("--size", type=int, default=128, help="width and height of the pictures in pixels")
    options = cli.parse_args(arguments)
    bodies = AnnyBodies()
    retarget = Retargeter(bodies.body)
    (options.out / "pictures").mkdir(parents=True, exist_ok=True)
    tables = []
    paths = [path for path in sorted(options.folder.glob("*.npz")) if path.with_suffix(".jpg").is_file()]
    for path in tqdm(paths, desc="photographs"):
        picture = read_picture(path.with_suffix(".jpg"))
        for matrix, table in people(Truth.load(path), bodies, retarget, path.stem, options.size):
            crop = cut(picture, matrix, options.size)
            cv2.imwrite(str(options.out / "pictures" / table.names[0]), crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
            tables.append(table)
    table = join(tables, str(options.folder))
    annotations.write(options.out / "people.npz", table, "training")
    print(f"{len(table)} people of {len(paths)} photographs in {options.out / 'people.npz'}")


if __name__ == "__main__":
    command.run(main)
