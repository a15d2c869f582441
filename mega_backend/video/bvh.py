"""Motion as BVH: a skeleton with the bone names that retargeting tools know. Centimetres, y up, at rest a T-pose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from mega_backend.rotations import smallest_between

from .animation import TO_Y_UP, Animation

if TYPE_CHECKING:
    from mega_backend.body import Body

# Limbs of two bones here and one there, which points at the next: the body's two may bend a little between them.
_ENDS = (("UpLeg", "Leg"), ("Arm", "ForeArm"), ("ForeArm", "Hand"))
_LIMBS = (("UpLeg", "upperleg01", "upperleg02", "Hips"), ("Leg", "lowerleg01", "lowerleg01", "UpLeg"),
          ("Foot", "foot", "foot", "Leg"), ("ToeBase", "toe2-1", "toe2-1", "Foot"),
          ("Shoulder", "clavicle", "clavicle", "Spine4"), ("Arm", "upperarm01", "upperarm02", "Shoulder"),
          ("ForeArm", "lowerarm01", "lowerarm01", "Arm"), ("Hand", "wrist", "wrist", "ForeArm"))  # fmt: skip


Bone = tuple[str, str, str, str | None]
"""Name, the body's bone whose head it has, the one whose rotation it has, and the parent's name."""


def _skeleton() -> list[Bone]:
    """The bones, parents first. Twist bones are left out."""
    result: list[Bone] = [("Hips", "root", "root", None)]
    spine = ["Hips", "Spine", "Spine1", "Spine2", "Spine3", "Spine4", "Neck", "Neck1", "Neck2", "Head"]
    bones = ["spine05", "spine04", "spine03", "spine02", "spine01", "neck01", "neck02", "neck03", "head"]
    result += [(name, bone, bone, parent) for name, bone, parent in zip(spine[1:], bones, spine, strict=False)]
    for side in ("Left", "Right"):
        for name, head, turn, parent in _LIMBS:
            owner = parent if parent in ("Hips", "Spine4") else side + parent
            result.append((side + name, f"{head}.{side[0]}", f"{turn}.{side[0]}", owner))
    return result


def bvh(person: Animation, body: Body, frame_time: float) -> str:
    """The motion of one person as the text of a BVH file.

    frame_time: seconds from frame to frame.
    """
    skeleton = _skeleton()
    names = [name for name, *_ in skeleton]
    bone = {name: number for number, name in enumerate(body.joint_names)}
    parents = [-1 if parent is None else names.index(parent) for *_, parent in skeleton]
    heads = body.heads(torch.as_tensor(person.shape)[None])
    places = _t_posed(body, heads)[[bone[head] for _, head, _, _ in skeleton]]
    lines, order = _hierarchy(names, parents, places)
    lines += ["MOTION", f"Frames: {len(person.times)}", f"Frame Time: {frame_time:.6f}"]
    turned = _turned(person, body, skeleton, places)
    root = heads[0, 0].double().numpy()
    for world, translation in zip(turned, person.translation, strict=True):
        local = np.stack([w if p < 0 else world[p].T @ w for w, p in zip(world, parents, strict=True)])
        angles = Rotation.from_matrix(local).as_euler("ZXY", degrees=True)
        place = 100 * TO_Y_UP @ (root + translation)
        lines.append(" ".join([_row(place), *(_row(angles[number]) for number in order)]))
    return "\n".join(lines) + "\n"


def _t_posed(body: Body, heads: torch.Tensor) -> np.ndarray:
    """Where the bones' heads (J, 3) lie in the T-pose, metres; heads (1, J, 3): where they lie at rest."""
    t_pose = body.t_pose(heads)[0].double().numpy()
    rest = heads[0].double().numpy()
    posed = np.zeros_like(rest)
    for joint, parent in enumerate(body.parents):
        if parent >= 0:
            posed[joint] = posed[parent] + t_pose[parent] @ (rest[joint] - rest[parent])
    return posed


def _hierarchy(names: Sequence[str], parents: Sequence[int], places: np.ndarray) -> tuple[list[str], list[int]]:
    """The lines of a BVH file that describe the skeleton, and the bones' order in them; places (B, 3) metres."""
    children = [[c for c, p in enumerate(parents) if p == number] for number in range(len(names))]
    order: list[int] = []
    lines = ["HIERARCHY"]

    def write(number: int, depth: int) -> None:
        order.append(number)
        pad = "  " * depth
        root = parents[number] < 0
        offset = np.zeros(3) if root else 100 * (places[number] - places[parents[number]])
        position = "6 Xposition Yposition Zposition" if root else "3"
        lines.append(f"{pad}{'ROOT' if root else 'JOINT'} {names[number]}")
        lines.append(pad + "{")
        lines.append(f"{pad}  OFFSET {_row(offset)}")
        lines.append(f"{pad}  CHANNELS {position} Zrotation Xrotation Yrotation")
        for child in children[number]:
            write(child, depth + 1)
        if not children[number]:
            lines.append(f"{pad}  End Site")
            lines.append(pad + "  {")
            end = np.array([0.0, 10.0, 0.0]) if names[number] == "Head" else offset / np.linalg.norm(offset) * 8
            lines.append(f"{pad}    OFFSET {_row(end)}")
            lines.append(pad + "  }")
        lines.append(pad + "}")

    write(0, 0)
    return lines, order


def _turned(person: Animation, body: Body, skeleton: Sequence[Bone], places: np.ndarray) -> np.ndarray:
    """World rotations (F, B, 3, 3) of the skeleton's bones, y up; places (B, 3): where they lie in the T-pose."""
    names = [name for name, *_ in skeleton]
    bone = {name: number for number, name in enumerate(body.joint_names)}
    with torch.no_grad():
        shapes = torch.as_tensor(person.shape)[None].expand(len(person.times), -1)
        posed = body.posed_heads(torch.as_tensor(person.rotations), shapes).double().numpy() @ TO_Y_UP.T
    turned = TO_Y_UP @ person.rotations[:, [bone[turn] for _, _, turn, _ in skeleton]].astype(np.float64)
    for name, end in _ENDS:
        for side in ("Left", "Right"):
            number, child = names.index(side + name), names.index(side + end)
            start, stop = (bone[skeleton[n][1]] for n in (number, child))
            along = turned[:, number] @ (places[child] - places[number])
            turned[:, number] = _aimed(along, posed[:, stop] - posed[:, start]) @ turned[:, number]
    return turned


def _aimed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The smallest rotations (F, 3, 3) from directions to directions (F, 3)."""
    return smallest_between(torch.from_numpy(first), torch.from_numpy(second)).numpy()


def _row(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.4f}" for number in numbers)
