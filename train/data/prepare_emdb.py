"""Make the evaluation npz of EMDB from its release: `P*/*/*_data.pkl`.

    python -m train.data.prepare_emdb FOLDER OUT.npz [--subset 1]

Subset 1 is the test set of the papers (EMDB1). Only good frames with a valid box are kept; picture names are relative
to FOLDER.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from train import command
from train.data import annotations, sequences
from train.data.annotations import AnnotationError, Annotations

MARGIN = 1.2
"""Box side over the longer side of the released box."""


def read_sequence(path: Path, root: Path, subset: int) -> Annotations | None:
    """The person of one released sequence, or None if the sequence belongs to another subset."""
    content = sequences.read_pickle(path)
    if not bool(sequences.field(content, path, f"emdb{subset}")):
        return None
    extrinsics = np.asarray(sequences.field(content, path, "camera", "extrinsics"), np.float64)
    smpl = {key: np.asarray(sequences.field(content, path, "smpl", key), np.float64) for key in _SMPL}
    pixels = np.asarray(sequences.field(content, path, "kp2d"), np.float64)
    boxes = np.asarray(sequences.field(content, path, "bboxes", "bboxes"), np.float64)
    count = len(boxes)
    good = np.asarray(sequences.field(content, path, "good_frames_mask")).astype(bool).copy()
    good[np.asarray(sequences.field(content, path, "bboxes", "invalid_idxs"), np.int64).ravel()] = False
    size = boxes[:, 2:] - boxes[:, :2]
    good &= np.isfinite(boxes).all(1) & (size > 0).all(1)
    confidence = np.isfinite(pixels).all(-1, keepdims=True)
    folder = path.parent.relative_to(root)
    table = Annotations(
        names=np.array([(folder / "images" / f"{frame:05d}.jpg").as_posix() for frame in range(count)]),
        centre=(boxes[:, :2] + boxes[:, 2:]) / 2,
        side=MARGIN * size.max(1),
        pose=np.column_stack([sequences.in_camera(smpl["poses_root"], extrinsics), smpl["poses_body"][:, :63]]),
        shape=np.tile(smpl["betas"].ravel()[:10], (count, 1)),
        gender=np.full(count, {"m": 1, "f": 2}.get(str(content.get("gender", "n"))[:1].lower(), 0)),
        joints=np.concatenate([np.nan_to_num(pixels), confidence], -1),
        joint_set="smpl24",
    )
    return table.select(good)


_SMPL = ("poses_root", "poses_body", "betas")


def main(arguments: list[str] | None = None) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("folder", type=Path, help="the release: holds P0, P1, …")
    cli.add_argument("out", type=Path)
    cli.add_argument("--subset", type=int, choices=(1, 2), default=1)
    options = cli.parse_args(arguments)
    paths = sorted(options.folder.glob("P*/*/*_data.pkl"))
    try:
        found = [read_sequence(path, options.folder, options.subset) for path in tqdm(paths, desc="EMDB")]
        table = sequences.join([part for part in found if part is not None], str(options.folder))
    except AnnotationError as error:
        cli.error(str(error))
    annotations.write(options.out, table, "evaluation")
    print(f"{len(table)} frames of {len(paths)} sequences in {options.out}")


if __name__ == "__main__":
    command.run(main)
