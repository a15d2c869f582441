"""The command line of `mega import`."""

from __future__ import annotations

import argparse

from mega_backend import checkpoint

from .assembly import import_files


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mega import`."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="in any order: checkpoints, the folder of connection matrices, an SMPL or SMPL-H file (.npz, .pkl), "
        "joint regressors (.npy, .npz), tpose.npy",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="model folder to make or to add to")
    parser.add_argument("--name", help="name of the model (default: that of the checkpoint's file)")
    parser.add_argument("--precision", choices=checkpoint.PRECISIONS, help="how to store weights (default: float32)")
    parser.add_argument("--heads", type=int, help="attention heads, if not the published 4 (MEGA) or 8 (VQ-HPS)")
    parser.add_argument("--backbone-heads", type=int, help="attention heads of a ViT that is not a usual one")
    parser.add_argument("--residual-rate", type=float, help="of mesh layers that mix convolution and pooling")


def run_import(arguments: argparse.Namespace) -> int:
    """Run `mega import`; returns the exit code. Raises CheckpointError with a sentence for the user."""
    done = import_files(
        arguments.files,
        arguments.output,
        arguments.name,
        arguments.heads,
        arguments.backbone_heads,
        arguments.residual_rate,
        arguments.precision,
    )
    for line in done.recognised:
        print(f"recognised  {line}")
    for line in done.notes:
        print(f"note        {line}")
    for line in done.missing:
        print(f"missing     {line}")
    print(f"written     {done.folder}")
    return 0
