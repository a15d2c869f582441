"""Retarget the usual 22 joints to the skeleton of a `Body`.

Both have the same T-pose, so a bone's world rotation is that of its joint. Bones between two joints get half of the
way; along upper arms, forearms and thighs, which two bones share, half of the twist, so that skin turns smoothly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mega_backend.body import Body
from mega_backend.plausibility import usual_joints, world_quaternions
from mega_backend.rotations import (
    conjugate,
    half,
    matrix_from_quaternion,
    multiply,
    quaternion_from_axis_angle,
    twist,
)
from train.data.mocap import JOINTS, PARENTS

_AXIS = {"arm": 0, "leg": 1}
FINGERS = tuple(f"finger{finger}-{segment}" for finger in range(1, 6) for segment in (1, 2))
# A hand at rest: how far thumb to little finger are bent beyond Anny's rest hand, radians, two joints each.
RELAXED = (0.1, 0.1, 0.15, 0.25, 0.2, 0.3, 0.25, 0.35, 0.3, 0.4)


def _source(bone: str) -> tuple[str, str]:
    """How a bone of the body follows the 22 joints: (rule, joint).

    "of" a joint; "before" it, half of its turn; "twisted" before it, half of its twist; "untwisted", without that half.
    """
    name, _, side = bone.partition(".")
    at = {"L": "left_", "R": "right_", "": ""}[side]
    if name.startswith("toe"):
        return "before", at + "foot"
    if name.startswith("finger"):
        return "of", at + "wrist"
    rules = {
        "root": ("of", "pelvis"),
        "spine05": ("before", "spine1"),
        "spine04": ("of", "spine1"),
        "spine03": ("before", "spine2"),
        "spine02": ("of", "spine2"),
        "spine01": ("of", "spine3"),
        "neck01": ("before", "neck"),
        "neck02": ("of", "neck"),
        "neck03": ("before", "head"),
        "head": ("of", "head"),
        "clavicle": ("of", at + "collar"),
        "upperarm01": ("untwisted arm", at + "shoulder"),
        "upperarm02": ("of", at + "shoulder"),
        "lowerarm01": ("of", at + "elbow"),
        "lowerarm02": ("twisted arm", at + "wrist"),
        "wrist": ("of", at + "wrist"),
        "upperleg01": ("untwisted leg", at + "hip"),
        "upperleg02": ("of", at + "hip"),
        "lowerleg01": ("of", at + "knee"),
        "foot": ("of", at + "ankle"),
    }
    return rules[name]


class Retargeter:
    """Turns poses of the 22 joints into world rotations for `Body.skin`, on the body's device."""

    def __init__(self, body: Body) -> None:
        self.body = body
        unique: list[tuple[str, str]] = []
        index = []
        for bone in body.joint_names:
            source = _source(bone)
            if source not in unique:
                unique.append(source)
            index.append(unique.index(source))
        device = body.mean.device
        self.sources = unique
        self.index = torch.as_tensor(index, device=device)
        self.finger_joints = torch.as_tensor(
            [[body.joint_names.index(f"{finger}.{side}") for finger in FINGERS] for side in "LR"], device=device
        )
        self.finger_axes = self._finger_axes()

    def _finger_axes(self) -> Tensor:
        """Axes (2, 10, 3) about which the fingers bend towards the palm in the T-pose, unit length."""
        body, heads = self.body, self.body.head_mean[None]
        turned = body.t_pose(heads)[0]
        axes = []
        for side in "LR":
            at = {name: body.joint_names.index(f"{name}.{side}") for name in (*FINGERS, "wrist")}
            position = {name: turned[at["wrist"]] @ heads[0, index] for name, index in at.items()}
            across = position["finger5-1"] - position["finger2-1"]
            along = position["finger3-1"] - position["wrist"]
            # Bending carries the fingers from `along` to the palm's side: about `across` on the left hand.
            sign = 1.0 if side == "L" else -1.0
            bend = sign * torch.nn.functional.normalize(across, dim=0)
            palm = torch.linalg.cross(bend, torch.nn.functional.normalize(along, dim=0))
            thumb = torch.nn.functional.normalize(position["finger1-2"] - position["finger1-1"], dim=0)
            # The thumb bends across the palm, towards the little finger.
            towards = torch.nn.functional.normalize(across, dim=0) + 0.1 * palm
            thumb_bend = torch.nn.functional.normalize(torch.linalg.cross(thumb, towards), dim=0)
            axes.append(torch.stack([thumb_bend] * 2 + [bend] * 8))
        return torch.stack(axes)

    def joints(self, rotations: Tensor) -> Tensor:
        """Local quaternions (N, 22, 4) of the usual 22 joints of a posed body, world rotations (N, J, 3, 3).

        Inverse of a call, but for what this leaves out: fingers, and how turns spread over a limb's two bones.
        """
        return usual_joints(self.body, rotations)

    def __call__(self, local: Tensor, fingers: Tensor | None = None) -> Tensor:
        """World rotations (N, J, 3, 3) of local quaternions (N, 22, 4).

        fingers: (N, 2, 10) radians that thumb to little finger bend, first and second joint, left hand first; a
        relaxed hand where not given.
        """
        world = world_quaternions(local)
        columns = []
        for rule, joint in self.sources:
            at = JOINTS.index(joint)
            if rule == "of":
                columns.append(world[:, at])
            elif rule == "before":
                columns.append(multiply(world[:, PARENTS[at]], half(local[:, at])))
            else:
                kind, limb = rule.split()
                turn = half(twist(local[:, at], _AXIS[limb]))
                before = kind == "twisted"
                columns.append(multiply(world[:, PARENTS[at] if before else at], turn if before else conjugate(turn)))
        bones = torch.stack(columns, dim=1)[:, self.index]
        if fingers is None:
            fingers = bones.new_tensor(RELAXED).expand(len(bones), 2, 10)
        # The second joint bends on top of the first, about the same axis.
        first = fingers.unflatten(2, (5, 2))
        angle = torch.stack((first[..., 0], first[..., 0] + first[..., 1]), dim=-1).flatten(2)
        bent = quaternion_from_axis_angle(angle[..., None] * self.finger_axes)
        joints = self.finger_joints.flatten()
        bones = bones.index_copy(1, joints, multiply(bones[:, joints], bent.flatten(1, 2)))
        return matrix_from_quaternion(bones)
