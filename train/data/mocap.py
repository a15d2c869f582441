"""Motion capture as local rotations of the usual 22 joints, from a folder of `{split}/{subject}.npz` and `index.json`.

Each file holds `quat` (N, 22, 4) float16, w first; `keep10` (N) bool, at most ten poses a second and no
near-duplicates; `start` and `length` (R) of its recordings, `trial` and `source` (R). World Y up, left = +X; the
identity is a T-pose facing +Z.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mega_backend.plausibility import JOINTS, PARENTS
from train.config import UserError

_OTHER_SIDE = {"left": "right", "right": "left"}
MIRROR = tuple(JOINTS.index("_".join(_OTHER_SIDE.get(word, word) for word in name.split("_"))) for name in JOINTS)
SPLITS = ("train", "val", "test")
# Retargeted by their publisher to another character: elbows and wrists are 25–43° off.
UNUSABLE_SOURCES = ("fbx-neo",)


@dataclass(frozen=True)
class Recording:
    """One recording: local rotations `quaternions` (N, 22, 4), root `positions` (N, 3) in metres, frames a second."""

    subject: str
    trial: str
    quaternions: Tensor
    positions: Tensor
    fps: float


def _files(folder: str | Path, split: str) -> list[Path]:
    if split not in SPLITS:
        raise UserError(f"No motion capture split {split!r}: use one of {', '.join(SPLITS)}.")
    folder = Path(folder)
    if not (folder / "index.json").is_file():
        raise FileNotFoundError(f"No motion capture in {folder}: name a folder with index.json, train, val and test.")
    index = json.loads((folder / "index.json").read_text())
    if tuple(index["joint_names"]) != JOINTS or tuple(index["parents"]) != PARENTS:
        raise UserError(f"{folder / 'index.json'} has another skeleton than the usual 22 joints: convert it first.")
    files = sorted((folder / split).glob("*.npz"))
    if not files:
        raise FileNotFoundError(f"No recordings in {folder / split}: put its .npz files there.")
    return files


def recordings(folder: str | Path, split: str) -> list[Recording]:
    """All usable recordings of a split ("train", "val" or "test"), every frame."""
    result = []
    for path in _files(folder, split):
        with np.load(path, allow_pickle=False) as data:
            quaternions = functional.normalize(torch.from_numpy(data["quat"].astype(np.float32)), dim=-1)
            positions = torch.from_numpy(data["trans"].astype(np.float32))
            for start, length, trial, source, fps in zip(
                data["start"],
                data["length"],
                data["trial"],
                data["source"],
                np.broadcast_to(data["fps"], data["start"].shape),
                strict=True,
            ):
                if str(source) in UNUSABLE_SOURCES:
                    continue
                frames = slice(int(start), int(start + length))
                result.append(Recording(path.stem, str(trial), quaternions[frames], positions[frames], float(fps)))
    return result


def poses(folder: str | Path, split: str) -> Tensor:
    """Distinct usable poses of a split, at most ten a second, as local quaternions (N, 22, 4)."""
    result = []
    for path in _files(folder, split):
        with np.load(path, allow_pickle=False) as data:
            keep = data["keep10"].copy()
            for start, length, source in zip(data["start"], data["length"], data["source"], strict=True):
                if str(source) in UNUSABLE_SOURCES:
                    keep[int(start) : int(start + length)] = False
            result.append(torch.from_numpy(data["quat"][keep].astype(np.float32)))
    return functional.normalize(torch.cat(result), dim=-1)
