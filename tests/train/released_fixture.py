"""3DPW and EMDB as they are released, a few frames of invented people long; commands as a user gives them."""

import pickle
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from smpl_fixture import random_people

from train.data.smpl import SmplBodies

SIZE = (640, 480)


def command(module: str, *arguments: object) -> int:
    """`python -m MODULE ARGUMENTS…` in this process; returns the exit status."""
    before, sys.argv = sys.argv, [module, *map(str, arguments)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that the module is imported already
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as done:
        return done.code or 0
    finally:
        sys.argv = before
    return 0


def world_sequence(model: SmplBodies, frames: int, seed: int) -> SimpleNamespace:
    """A moving man and a moving camera: pose (F, 72), betas (10), trans (F, 3) and joints (F, 24, 3) of the world,
    extrinsics (F, 4, 4), intrinsics (3, 3)."""
    random = np.random.default_rng(seed)
    pose = random_people(1, seed)["pose"].repeat(frames, 0) + random.normal(0, 0.02, (frames, 72))
    betas, trans = random.normal(0, 1, 10), np.cumsum(random.normal(0, 0.01, (frames, 3)), 0)
    tensors = [torch.from_numpy(x).float() for x in (pose[:, :3], pose[:, 3:66], np.tile(betas, (frames, 1)))]
    vertices = model.posed(*tensors, torch.ones(frames, dtype=torch.long))
    extrinsics = np.tile(np.eye(4), (frames, 1, 1))
    extrinsics[:, :3, :3] = Rotation.from_rotvec(random.normal(0, 0.3, (frames, 3))).as_matrix()
    extrinsics[:, :3, 3] = [0.2, 0.1, 4]
    return SimpleNamespace(
        frames=frames,
        pose=pose,
        betas=betas,
        trans=trans,
        joints=model.joints(vertices, "smpl24").numpy() + trans[:, None],
        extrinsics=extrinsics,
        intrinsics=np.array([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]]),
    )


def write_3dpw(folder: Path, world: SimpleNamespace, name: str, split: str = "test", **changes) -> None:
    """One sequence of 3DPW's release: its pickle, and a picture of every frame."""
    content = {
        "sequence": name,
        "poses": [world.pose],
        "betas": [np.concatenate([world.betas, np.zeros(3)])],
        "trans": [world.trans],
        "jointPositions": [world.joints.reshape(world.frames, 72)],
        "genders": ["m"],
        "cam_poses": world.extrinsics,
        "cam_intrinsics": world.intrinsics,
        "campose_valid": [np.ones(world.frames, int)],
        **changes,
    }
    path = folder / "sequenceFiles" / split / f"{name}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    write_pictures(folder / "imageFiles" / name, [f"image_{frame:05d}.jpg" for frame in range(world.frames)])


def write_emdb(folder: Path, world: SimpleNamespace, good: np.ndarray, boxes: np.ndarray, invalid: list[int]) -> None:
    """One sequence of EMDB's release, P0/00_test, of subset 1; good (F) frames, boxes (F, 4), frames without a box."""
    content = {
        "gender": "female",
        "name": "P0_00_test",
        "emdb1": True,
        "emdb2": False,
        "n_frames": world.frames,
        "good_frames_mask": good,
        "camera": {"intrinsics": world.intrinsics, "extrinsics": world.extrinsics, "width": SIZE[0], "height": SIZE[1]},
        "smpl": {
            "poses_root": world.pose[:, :3],
            "poses_body": world.pose[:, 3:],
            "trans": world.trans,
            "betas": world.betas,
        },
        "kp2d": np.zeros((world.frames, 24, 2)),
        "bboxes": {"bboxes": boxes, "invalid_idxs": np.array(invalid)},
    }
    sequence = folder / "P0" / "00_test"
    write_pictures(sequence / "images", [f"{frame:05d}.jpg" for frame in range(world.frames)])
    (sequence / "P0_00_test_data.pkl").write_bytes(pickle.dumps(content))


def write_pictures(folder: Path, names: list[str]) -> None:
    """Pictures of nothing in particular."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        picture = np.random.default_rng(number).integers(0, 256, (12, 16, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(picture, SIZE, interpolation=cv2.INTER_NEAREST))
