"""What is known about the people of a picture dataset: one npz file in, one table of arrays out.

Two layouts of npz are in use. *Training* files (COCO, MPII, Human3.6M, MPI-INF-3DHP, BEDLAM, our synthetic pictures):
`imgname`, `center`, `scale` = box side / 200, `pose_cam` or `pose` (N, ≥66), `shape` or `betas`, `part` or `j2d`
(N, 24, 3), optional `gender`. *Evaluation* files (3DPW, EMDB; `train.data.prepare_*` makes them): `root_orient` and
`pose_body` in place of the pose, and `scale` **inverse**: box side = 200 / scale. Rotations are in the camera's frame:
x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mega_backend import foreign
from mega_backend.checkpoint import CheckpointError
from mega_backend.people.landmarks import MIRRORED
from train.config import UserError
from train.data.smpl import GENDERS

# The 24 annotated joints of training files, and the 17 of them that are used: `J24[J17]` are Human3.6M's.
ANNOTATED24 = [
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "top_of_head", "mpii_pelvis", "thorax",
    "spine", "jaw", "head", "nose", "left_eye", "right_eye", "left_ear", "right_ear",
]  # fmt: skip
USED17 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 18, 14, 16, 17)
# Left and right exchanged: of the 17 used joints, of SMPL's 24, of the 22 of pose vectors.
MIRROR17 = (5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13, 14, 15, 16)
MIRROR_SMPL24 = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)
JOINT_MIRRORS = {"h36m": MIRROR17, "smpl24": MIRROR_SMPL24, "landmarks33": MIRRORED}
POSE_JOINTS = 22
# Sequences of 3DPW, from all of its splits, in which things hide people (Zhang et al., "Object-Occluded Human Shape and
# Pose Estimation", CVPR 2020).
OCCLUDED_3DPW = [
    "courtyard_backpack", "courtyard_basketball", "courtyard_bodyScannerMotions", "courtyard_box", "courtyard_golf",
    "courtyard_jacket", "courtyard_laceShoe", "downtown_stairs", "flat_guitar", "flat_packBags", "outdoors_climbing",
    "outdoors_crosscountry", "outdoors_fencing", "outdoors_freestyle", "outdoors_golf", "outdoors_parcours",
    "outdoors_slalom",
]  # fmt: skip


class AnnotationError(UserError):
    """A dataset file that cannot be used; the message says which field is wrong."""


@dataclass(frozen=True)
class Annotations:
    """N people in pictures.

    Attributes:
        names: (N,) picture files, relative to the dataset's picture folder.
        centre (N, 2), side (N): the square box, pixels of the full picture (edges at whole numbers).
        pose (N, 66): axis-angle of root (in the camera's frame) and 21 body joints. shape (N, S).
        gender (N): codes, indices into `train.data.smpl.GENDERS`.
        joints (N, J, 3): x, y in pixels and confidence, 0 where unknown. joint_set: "h36m" (17), "smpl24" or
            "landmarks33" (MediaPipe's, `train.data.landmarks`).
        body: "smpl" or "anny": what `shape` belongs to.
    """

    names: np.ndarray
    centre: np.ndarray
    side: np.ndarray
    pose: np.ndarray
    shape: np.ndarray
    gender: np.ndarray
    joints: np.ndarray
    joint_set: str
    body: str = "smpl"

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: np.ndarray | slice) -> Annotations:
        """These rows only (indices, mask or slice)."""
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in ("joint_set", "body")}
        return replace(self, **picked)

    def of_sequences(self, prefixes: Sequence[str]) -> Annotations:
        """Rows whose picture lies in a folder that begins with one of `prefixes` (3DPW's sequences)."""
        folders = [Path(str(name)).parent.name for name in self.names]
        return self.select(np.array([folder.startswith(tuple(prefixes)) for folder in folders], bool))


def read(path: str | Path) -> Annotations:
    """Read a dataset file of either layout (module docstring); people without a usable box are left out.

    Raises:
        AnnotationError: no such file, a field is missing or has another shape, or nobody is left.
    """
    path = Path(path)
    if not path.is_file():
        raise AnnotationError(f"No dataset file at {path}: give the path of an .npz file.")
    try:
        file = foreign.Archive(path)
        arrays = {name: np.asarray(file[name]) for name in _FIELDS if name in file}
    except (CheckpointError, OSError, BadZipFile) as error:
        raise AnnotationError(f"{path} cannot be read as a dataset: {error}") from error
    table = _evaluation(path, arrays) if "root_orient" in arrays else _training(path, arrays)
    usable = (table.side > 0) & np.isfinite(table.side) & np.isfinite(table.centre).all(1)
    usable &= np.isfinite(table.pose).all(1) & np.isfinite(table.shape).all(1)
    if not usable.any():
        raise AnnotationError(f"{path} has no person with a box and a pose.")
    return table.select(usable)


def write(path: str | Path, table: Annotations, layout: str) -> None:
    """Write a dataset file: "training" (24 annotated joints) or "evaluation" (SMPL's 24 joints)."""
    common = {"imgname": table.names.astype(np.str_), "center": table.centre.astype(np.float32)}
    common["gender"] = np.array([GENDERS[code] for code in table.gender])
    if layout == "evaluation":
        values = {
            "scale": 200 / table.side,
            "root_orient": table.pose[:, :3],
            "pose_body": table.pose[:, 3:],
            "betas": table.shape,
            "j2d": table.joints,
        }
    else:
        part = table.joints
        if part.shape[1] == len(USED17):
            part = np.zeros((len(table), len(ANNOTATED24), 3), np.float32)
            part[:, USED17] = table.joints
        values = {"scale": table.side / 200, "pose_cam": table.pose, "shape": table.shape, "part": part}
        if table.body != "smpl":
            common["body"] = np.array(table.body)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **common, **{name: value.astype(np.float32) for name, value in values.items()})
    partial.replace(path)


_FIELDS = [
    "imgname", "center", "scale", "pose_cam", "pose", "root_orient", "pose_body", "shape", "betas", "part", "j2d",
    "gender", "body",
]  # fmt: skip


def _training(path: Path, arrays: dict[str, np.ndarray]) -> Annotations:
    count = len(_field(path, arrays, "imgname"))
    pose = _field(path, arrays, "pose_cam", "pose").reshape(count, -1)
    if pose.shape[1] < 3 * POSE_JOINTS:
        raise AnnotationError(f"{path}: poses have {pose.shape[1]} numbers; at least {3 * POSE_JOINTS} are needed.")
    joints = _joints(path, arrays, count)[:, USED17]
    return Annotations(
        names=arrays["imgname"].astype(np.str_),
        centre=_shaped(path, arrays, "center", (count, 2)),
        side=200 * _field(path, arrays, "scale").reshape(count, -1)[:, 0].astype(np.float32),
        pose=pose[:, : 3 * POSE_JOINTS].astype(np.float32),
        shape=_field(path, arrays, "shape", "betas").reshape(count, -1).astype(np.float32),
        gender=_genders(path, arrays, count),
        joints=joints,
        joint_set="h36m",
        body=str(arrays.get("body", "smpl")),
    )


def _evaluation(path: Path, arrays: dict[str, np.ndarray]) -> Annotations:
    count = len(_field(path, arrays, "imgname"))
    body = _shaped(path, arrays, "pose_body", (count, 3 * (POSE_JOINTS - 1)))
    inverse = _field(path, arrays, "scale").reshape(count, -1)[:, 0].astype(np.float64)
    side = np.divide(200, inverse, out=np.zeros(count), where=inverse > 0)
    return Annotations(
        names=arrays["imgname"].astype(np.str_),
        centre=_shaped(path, arrays, "center", (count, 2)),
        side=side.astype(np.float32),
        pose=np.concatenate([_shaped(path, arrays, "root_orient", (count, 3)), body], 1),
        shape=_field(path, arrays, "betas").reshape(count, -1).astype(np.float32),
        gender=_genders(path, arrays, count),
        joints=_joints(path, arrays, count),
        joint_set="smpl24",
    )


def _field(path: Path, arrays: dict[str, np.ndarray], *names: str) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise AnnotationError(f"{path} has no field {' or '.join(map(repr, names))}.")


def _shaped(path: Path, arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = _field(path, arrays, name)
    if value.shape != shape:
        raise AnnotationError(f"{path}: {name!r} has shape {value.shape}, not {shape}.")
    return value.astype(np.float32)


def _joints(path: Path, arrays: dict[str, np.ndarray], count: int) -> np.ndarray:
    """2D joints (N, 24, 3); those that are not finite get confidence 0."""
    name = "part" if "part" in arrays else "j2d"
    joints = _shaped(path, arrays, name, (count, len(ANNOTATED24), 3))
    unknown = ~np.isfinite(joints).all(-1)
    joints[unknown] = 0
    return joints


def _genders(path: Path, arrays: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Codes from names or initials; neutral where the file says nothing."""
    if "gender" not in arrays:
        return np.zeros(count, np.int64)
    initials = np.array([str(value)[:1].lower() for value in np.broadcast_to(arrays["gender"], (count,))])
    codes = np.select([initials == "m", initials == "f", initials == "n"], [1, 2, 0], -1)
    if (codes < 0).any():
        raise AnnotationError(f"{path}: gender {initials[codes < 0][0]!r} is none of {', '.join(GENDERS)}.")
    return codes.astype(np.int64)
