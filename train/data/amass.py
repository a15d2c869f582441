"""Read AMASS (and BEDLAM animation) files into the usual 22 joints.

They hold `poses` (F, ≥ 66), axis-angle numbers of SMPL-H or SMPL-X, whose first 22 joints are the usual ones.
"""

from __future__ import annotations

import math
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from mega_backend import foreign
from mega_backend.checkpoint import CheckpointError
from mega_backend.rotations import multiply, quaternion_from_axis_angle
from train.config import UserError
from train.data.mocap import JOINTS, Recording

_FPS_NAMES = ("mocap_framerate", "mocap_frame_rate", "fps")


def read(path: str | Path, up: str = "z", fps: float = 30.0) -> Recording:
    """A file's body motion as a recording, Y up.

    Args:
        up: which of the file's axes points up: "z" in AMASS, "y" where bodies already stand upright without turning.
        fps: frames a second where the file does not tell.
    Raises:
        UserError: not such a file.
    """
    path = Path(path)
    try:
        file = foreign.Archive(path)
        data = {name: np.asarray(file[name]) for name in ("poses", "trans", *_FPS_NAMES) if name in file}
    except (CheckpointError, OSError, BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a motion: {error}") from error
    poses = data.get("poses", np.zeros(0))
    if poses.ndim != 2 or poses.shape[1] < 3 * len(JOINTS):
        raise UserError(f"{path.name} is no AMASS file: it lacks `poses` with at least {3 * len(JOINTS)} columns.")
    turns = torch.from_numpy(poses[:, : 3 * len(JOINTS)].astype(np.float32))
    position = data.get("trans", np.zeros((len(turns), 3)))
    rate = next((float(data[name]) for name in _FPS_NAMES if name in data), fps)
    quaternions = quaternion_from_axis_angle(turns.unflatten(1, (len(JOINTS), 3)))
    position = torch.from_numpy(np.asarray(position, dtype=np.float32))
    if up == "z":
        upright = quaternion_from_axis_angle(torch.tensor([-math.pi / 2, 0.0, 0.0]))
        quaternions[:, 0] = multiply(upright.expand(len(turns), 4), quaternions[:, 0])
        position = torch.stack((position[:, 0], position[:, 2], -position[:, 1]), dim=1)
    elif up != "y":
        raise UserError(f'The axis that points up must be "y" or "z", not {up!r}.')
    return Recording(path.parent.name, path.stem, quaternions, position, rate)
