"""Gather BVH and AMASS files in a motion capture folder that training reads.

    python -m train.data.convert FILE_OR_FOLDER… -o FOLDER [--split train|val|test]

Every file becomes a recording of `FOLDER/{split}/{name}.npz`; poses that training takes are ten a second, without
near-duplicates. Hold out whole people: convert their files with `--split test`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from mega_backend.rotations import conjugate, multiply
from train import command
from train.data import amass, bvh, mocap

_POSES_A_SECOND = 10
_DIFFERENT_DEGREES = 6.0


def distinct(quaternions: torch.Tensor, fps: float) -> torch.Tensor:
    """Which frames (N) of poses (N, 22, 4) to train on: at most ten a second, each unlike the one before."""
    keep = torch.zeros(len(quaternions), dtype=torch.bool)
    last = None
    for frame in range(0, len(quaternions), max(1, round(fps / _POSES_A_SECOND))):
        # The root's orientation does not count: bodies are trained on without it.
        body = quaternions[frame, 1:]
        if last is not None:
            change = multiply(conjugate(last), body)[:, 0].abs().clamp(max=1)
            if float(2 * torch.acos(change).max()) < np.deg2rad(_DIFFERENT_DEGREES):
                continue
        keep[frame], last = True, body
    return keep


def write(recordings: list[mocap.Recording], folder: Path, split: str, name: str) -> None:
    """Write recordings as one subject's file of a motion capture folder, and the folder's index where it is new."""
    lengths = [len(recording.quaternions) for recording in recordings]
    path = folder / split / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        quat=torch.cat([recording.quaternions for recording in recordings]).numpy().astype(np.float16),
        trans=torch.cat([recording.positions for recording in recordings]).numpy().astype(np.float32),
        keep10=torch.cat([distinct(recording.quaternions, recording.fps) for recording in recordings]).numpy(),
        start=np.cumsum([0, *lengths[:-1]]),
        length=np.array(lengths),
        trial=np.array([recording.trial for recording in recordings]),
        source=np.array(["converted"] * len(recordings)),
        fps=np.array([recording.fps for recording in recordings]),
    )
    index = folder / "index.json"
    if not index.exists():
        index.write_text(json.dumps({"joint_names": mocap.JOINTS, "parents": mocap.PARENTS}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("inputs", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--split", choices=mocap.SPLITS, default="train")
    parser.add_argument("--name", default="converted", help="of the subject")
    parser.add_argument("--up", choices=("y", "z"), default="z", help="the axis that points up in .npz files (z)")
    options = parser.parse_args()
    files = []
    for given in options.inputs:
        files += (
            sorted(p for p in given.rglob("*") if p.suffix.lower() in (".bvh", ".npz")) if given.is_dir() else [given]
        )
    recordings, failures = [], 0
    for file in files:
        try:
            recordings.append(bvh.read(file) if file.suffix.lower() == ".bvh" else amass.read(file, options.up))
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            failures += 1
    if not recordings:
        print("No recording could be read.", file=sys.stderr)
        return 2
    write(recordings, options.output, options.split, options.name)
    print(f"{len(recordings)} recordings, {sum(len(r.quaternions) for r in recordings)} frames → {options.output}")
    return 2 if failures else 0


if __name__ == "__main__":
    command.run(main)
