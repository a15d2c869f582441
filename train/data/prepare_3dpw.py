"""Make the evaluation npz of 3DPW from its release: `sequenceFiles/{train,validation,test}/*.pkl`.

    python -m train.data.prepare_3dpw FOLDER OUT.npz [--split test]

Picture names are relative to the release's `imageFiles`. "all" joins the three splits, as 3DPW-OCC needs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from train import command
from train.data import annotations, sequences
from train.data.annotations import AnnotationError, Annotations

SPLITS = ("train", "validation", "test")


def read_sequence(path: Path) -> list[Annotations]:
    """The people of one released sequence, frames with a valid camera pose only."""
    content = sequences.read_pickle(path)
    name = str(sequences.field(content, path, "sequence"))
    extrinsics = np.asarray(sequences.field(content, path, "cam_poses"), np.float64)
    intrinsics = np.asarray(sequences.field(content, path, "cam_intrinsics"), np.float64)
    genders = sequences.field(content, path, "genders")
    people = []
    for person, poses in enumerate(sequences.field(content, path, "poses")):
        poses = np.asarray(poses, np.float64)
        count = min(len(poses), len(extrinsics))
        world = np.asarray(content["jointPositions"][person], np.float64)[:count].reshape(count, -1, 3)[:, :24]
        joints = sequences.project(world, extrinsics[:count], intrinsics)
        valid = np.asarray(content["campose_valid"][person][:count]).astype(bool) & (joints[..., 2] > 0).all(1)
        if not valid.any():
            continue
        centre, side = sequences.smooth_boxes(joints, valid)
        root = sequences.in_camera(poses[:count, :3], extrinsics[:count])
        betas = np.asarray(content["betas"][person], np.float64).ravel()[:10]
        table = Annotations(
            names=np.array([f"{name}/image_{frame:05d}.jpg" for frame in range(count)]),
            centre=centre,
            side=side,
            pose=np.column_stack([root, poses[:count, 3:66]]),
            shape=np.tile(betas, (count, 1)),
            gender=np.full(count, {"m": 1, "f": 2}.get(str(genders[person])[:1].lower(), 0)),
            joints=joints,
            joint_set="smpl24",
        )
        people.append(table.select(valid))
    return people


def main(arguments: list[str] | None = None) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("folder", type=Path, help="the release: holds sequenceFiles and imageFiles")
    cli.add_argument("out", type=Path)
    cli.add_argument("--split", choices=(*SPLITS, "all"), default="test")
    options = cli.parse_args(arguments)
    splits = SPLITS if options.split == "all" else (options.split,)
    paths = sorted(path for split in splits for path in (options.folder / "sequenceFiles" / split).glob("*.pkl"))
    try:
        tables = [table for path in tqdm(paths, desc="3DPW") for table in read_sequence(path)]
        table = sequences.join(tables, str(options.folder / "sequenceFiles"))
    except AnnotationError as error:
        cli.error(str(error))
    annotations.write(options.out, table, "evaluation")
    print(f"{len(table)} people of {len(paths)} sequences in {options.out}")


if __name__ == "__main__":
    command.run(main)
