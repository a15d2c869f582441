"""The SMPL body that its licence holder brings: topology, joint regressors, parts, and posing through ``smplx``.

Everything is read from the user's own files by `mega import` and stays in his model folder; nothing of SMPL is part of
this program. Joints, parts and axes follow the same conventions as the bundled body (``mega_backend.body``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint import CheckpointError

PARTS = (
    "head",
    "torso",
    "left_arm",
    "right_arm",
    "left_hand",
    "right_hand",
    "left_leg",
    "right_leg",
    "left_foot",
    "right_foot",
)
# The 24 joints of SMPL; SMPL-H has the first 22, then the fingers of the left and of the right hand.
JOINTS = [
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle",
    "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand",
    "right_hand"
]  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
H36M = [
    "pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "spine",
    "neck", "nose", "head_top", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow",
    "right_wrist"
]  # fmt: skip
COCO = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
    "left_ankle", "right_ankle"
]  # fmt: skip
SHAPES = 10  # the shape coefficients that the published models use
VERTICES = 6890


def _part_of(joint: str) -> int:
    """The body part that a joint moves, as an index into ``PARTS``."""
    side, _, bone = joint.rpartition("_")
    for part, bones in {"leg": "hip knee", "foot": "ankle foot", "arm": "shoulder elbow", "hand": "wrist hand"}.items():
        if bone in bones.split():
            return PARTS.index(f"{side}_{part}")
    return PARTS.index("head" if joint in ("neck", "head") else "torso")


def parts_of(weights: np.ndarray) -> np.ndarray:
    """The part (V) of every vertex: that of the joint with most weight in the skinning weights (V, J)."""
    fingers = (weights.shape[1] - 22) // 2  # one joint per hand in SMPL, fifteen in SMPL-H
    names = [*JOINTS[:22], *["left_hand"] * fingers, *["right_hand"] * fingers]
    return np.asarray([_part_of(name) for name in names], dtype=np.int64)[weights.argmax(1)]


def read(source: Any, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a body from an SMPL or SMPL-H file (a mapping of arrays).

    Raises CheckpointError where an array is missing or its shape does not fit the others.
    """

    def array(name: str, *shape: int | None) -> np.ndarray:
        if name not in source:
            raise CheckpointError(f"{where} is no SMPL file: it lacks {name}")
        try:
            value = np.asarray(source[name], dtype=np.float64 if name not in ("f", "kintree_table") else np.int64)
        except (TypeError, ValueError):
            raise CheckpointError(f"{where}: {name} is not an array of numbers") from None
        fits = value.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, value.shape, strict=True))
        if not fits:
            wanted = " × ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(f"{where}: {name} has shape {value.shape}, expected {wanted}")
        return value

    template = array("v_template", None, 3)
    vertices = len(template)
    # 32-bit files store "no parent" as 2^32 − 1.
    parents = array("kintree_table", 2, None)[0]
    joints = len(parents)
    parents[0] = -1
    if joints not in (24, 52) or tuple(parents[:22]) != PARENTS[:22]:
        raise CheckpointError(f"{where} has another skeleton ({joints} joints): give an SMPL or SMPL-H file")
    shapes = array("shapedirs", vertices, 3, None)[..., :SHAPES]
    pose = array("posedirs", vertices, 3, 9 * (joints - 1))
    weights = array("weights", vertices, joints)
    regressor = array("J_regressor", joints, vertices)
    faces = array("f", None, 3)
    if faces.min() < 0 or faces.max() >= vertices:
        raise CheckpointError(f"{where}: its faces name vertices that it does not have")
    config = {
        "kind": "smpl",
        "vertices": vertices,
        "faces": len(faces),
        "joints": joints,
        "shapes": shapes.shape[2],
        "h36m": False,
    }
    floats = {
        "template": template,
        "shape_basis": shapes,
        "pose_basis": pose,
        "skinning": weights,
        "joint_regressor": regressor,
    }
    state = {name: torch.tensor(value, dtype=torch.float32) for name, value in floats.items()}
    state["parents"] = torch.tensor(parents)
    state["faces"] = torch.tensor(faces)
    state["vertex_part"] = torch.tensor(parts_of(weights))
    return config, state


class SMPLBody(nn.Module):
    """SMPL or SMPL-H as a licence holder's file describes it.

    Attributes: ``template`` (V, 3), ``shape_basis`` (V, 3, S), ``pose_basis`` (V, 3, 9·(J − 1)), ``skinning`` (V, J),
    ``joint_regressor`` (J, V), ``h36m_regressor`` (17, V) where it was imported, ``parents`` (J), ``faces`` (F, 3),
    ``vertex_part`` (V) with ``part_names``. SMPL has no quads and brings no UVs: those are None.
    """

    def __init__(self, vertices: int, faces: int, joints: int, shapes: int = SHAPES, h36m: bool = False):
        super().__init__()
        self.config = {"vertices": vertices, "faces": faces, "joints": joints, "shapes": shapes, "h36m": h36m}
        self.register_buffer("template", torch.zeros(vertices, 3))
        self.register_buffer("shape_basis", torch.zeros(vertices, 3, shapes))
        self.register_buffer("pose_basis", torch.zeros(vertices, 3, 9 * (joints - 1)))
        self.register_buffer("skinning", torch.zeros(vertices, joints))
        self.register_buffer("joint_regressor", torch.zeros(joints, vertices))
        if h36m:
            self.register_buffer("h36m_regressor", torch.zeros(17, vertices))
        self.register_buffer("parents", torch.zeros(joints, dtype=torch.long))
        self.register_buffer("faces", torch.zeros(faces, 3, dtype=torch.long))
        self.register_buffer("vertex_part", torch.zeros(vertices, dtype=torch.long))
        self.quads = self.uv = self.face_uv = None
        self.name = "smpl"
        self.part_names = list(PARTS)
        fingers = [f"{side}_finger{number}" for side in ("left", "right") for number in range(15)]
        self.joint_names = [*JOINTS[:22], *(fingers if joints == 52 else JOINTS[22:])]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SMPLBody:
        """A body of the configured sizes, unfilled."""
        return cls(**config)

    @property
    def vertex_count(self) -> int:
        """Number of vertices V."""
        return len(self.template)

    @property
    def joint_count(self) -> int:
        """Number of joints J of the skeleton."""
        return len(self.parents)

    @property
    def shape_count(self) -> int:
        """Number of shape coefficients S."""
        return self.shape_basis.shape[2]

    # Joints

    def regressor_names(self, name: str) -> tuple[str, ...]:
        """The joints' names of a regressor: "smpl24", "body22", "coco17", or "h36m17" where it was imported."""
        known = {"smpl24": JOINTS, "body22": JOINTS[:22]}
        if self.vertex_count == VERTICES:  # eyes, ears and nose are single vertices of that topology
            known["coco17"] = COCO
        if self.config["h36m"]:
            known["h36m17"] = H36M
        if name not in known:
            missing = "; import J_regressor_h36m.npy first" if name == "h36m17" else ""
            raise ValueError(f"no joint regressor {name!r}{missing}: use one of {', '.join(known)}")
        return tuple(known[name])

    def regressor(self, name: str) -> Tensor:
        """A regressor as a dense matrix (K, V)."""
        names = self.regressor_names(name)
        if name == "h36m17":
            return self.h36m_regressor
        # "The first 24": in SMPL-H those are the body and the first joints of the left hand.
        if name in ("smpl24", "body22"):
            return self.joint_regressor[: len(names)]
        return torch.stack([self._coco_row(joint) for joint in names])

    def _coco_row(self, joint: str) -> Tensor:
        if joint in JOINTS:
            return self.joint_regressor[JOINTS.index(joint)]
        from smplx.vertex_ids import vertex_ids

        if self.vertex_count != VERTICES:
            raise ValueError(
                f"eyes, ears and nose are known for {VERTICES} vertices, this body has {self.vertex_count}"
            )
        side, _, organ = joint.rpartition("_")
        vertex = vertex_ids["smplh"][f"{side[:1]}{organ}"]
        return nn.functional.one_hot(torch.tensor(vertex, device=self.template.device), VERTICES).to(self.template)

    def joints(self, vertices: Tensor, name: str) -> Tensor:
        """Joints (…, K, 3) regressed from the vertices (…, V, 3)."""
        return self.regressor(name).to(vertices) @ vertices

    # Pose

    def posed(self, pose: Tensor, shape: Tensor, root: Tensor | None = None) -> Tensor:
        """Vertices (B, V, 3), metres, of a posed body, by ``smplx``.

        pose : (B, 63) or (B, 3·(J − 1)) axis-angle of the body's joints; joints not given stay at rest (hands flat)
        shape : (B, ≤ S) coefficients
        root : (B, 3) axis-angle of the pelvis, none by default
        """
        count = 3 * (self.joint_count - 1)
        if pose.dim() != 2 or pose.shape[1] % 3 or pose.shape[1] > count:
            raise ValueError(
                f"pose has shape {tuple(pose.shape)}, expected (B, 63) up to (B, {count}) axis-angle numbers"
            )
        root = pose.new_zeros(len(pose), 3) if root is None else root
        full = torch.cat([root, pose, pose.new_zeros(len(pose), count - pose.shape[1])], dim=1)
        return self._skin(full, shape, axis_angle=True)

    def skin(self, rotations: Tensor, shape: Tensor) -> Tensor:
        """Vertices (B, V, 3) from world rotations (B, J, 3, 3) from the T-pose and shape coefficients (B, ≤ S)."""
        local = rotations.clone()
        local[:, 1:] = rotations[:, self.parents[1:]].transpose(-1, -2) @ rotations[:, 1:]
        return self._skin(local, shape, axis_angle=False)

    def _skin(self, pose: Tensor, shape: Tensor, axis_angle: bool) -> Tensor:
        from smplx.lbs import lbs

        count = 9 * (self.joint_count - 1)
        return lbs(
            nn.functional.pad(shape, (0, self.shape_count - shape.shape[1])),
            pose,
            self.template,
            self.shape_basis,
            self.pose_basis.reshape(-1, count).T,
            self.joint_regressor,
            self.parents,
            self.skinning,
            pose2rot=axis_angle,
        )[0]

    @staticmethod
    def canonical(vertices: Tensor, root_rotation: Tensor) -> Tensor:
        """Canonical vertices (…, V, 3) of a posed mesh: root rotation (…, 3, 3) removed, mean subtracted."""
        turned = vertices @ root_rotation
        return turned - turned.mean(-2, keepdim=True)
