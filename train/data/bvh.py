"""Read BVH motion capture into the usual 22 joints.

A BVH skeleton rests in its zero pose, whatever that is. Its joints are recognised by their names (CMU, Mixamo,
MotionBuilder, DAZ and similar rigs), its axes from where hips and head are, and its limbs' rest directions are taken to
the T-pose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mega_backend.rotations import (
    about_axis,
    local_from_world,
    matrix_from_quaternion,
    quaternion_from_matrix,
    smallest_between,
)
from train.config import UserError
from train.data.mocap import JOINTS, PARENTS, Recording

# Names of the 22 joints' counterparts, lower case, without prefix and separators; {s} is l or left, r or right.
_NAMES = {
    "hip": ("{s}upleg", "{s}thigh", "{s}upperleg", "{s}hip", "{s}femur"),
    "knee": ("{s}leg", "{s}shin", "{s}lowerleg", "{s}knee", "{s}calf", "{s}tibia"),
    "ankle": ("{s}foot", "{s}ankle"),
    "foot": ("{s}toebase", "{s}toe", "{s}toes", "{s}ball"),
    "collar": ("{s}shoulder", "{s}collar", "{s}clavicle"),
    "shoulder": ("{s}arm", "{s}shldr", "{s}upperarm", "{s}uparm", "{s}humerus"),
    "elbow": ("{s}forearm", "{s}elbow", "{s}lowerarm", "{s}radius"),
    "wrist": ("{s}hand", "{s}wrist"),
}
_UNIT_HEIGHT = 1.7


@dataclass
class Skeleton:
    """Joints of a BVH file: names, parents, offsets (J, 3) in the file's unit, and each one's channels."""

    names: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    offsets: list[list[float]] = field(default_factory=list)
    channels: list[list[str]] = field(default_factory=list)


def parse(text: str) -> tuple[Skeleton, np.ndarray, float]:
    """Skeleton, channel values (frames, channels) and frame time in seconds of a BVH file's text."""
    head, separator, tail = text.partition("MOTION")
    if "HIERARCHY" not in head or not separator:
        raise UserError("This is no BVH file: it lacks HIERARCHY or MOTION.")
    skeleton, stack, end_site = Skeleton(), [], False
    for line in head.splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] in ("ROOT", "JOINT"):
            skeleton.names.append(" ".join(words[1:]))
            skeleton.parents.append(stack[-1] if stack else -1)
            skeleton.offsets.append([0.0, 0.0, 0.0])
            skeleton.channels.append([])
            pending = len(skeleton.names) - 1
        elif words[0] == "End":
            end_site, pending = True, -1
        elif words[0] == "{":
            stack.append(pending)
        elif words[0] == "}":
            stack.pop()
            end_site = False
        elif words[0] == "OFFSET" and not end_site:
            skeleton.offsets[stack[-1]] = [float(word) for word in words[1:4]]
        elif words[0] == "CHANNELS":
            skeleton.channels[stack[-1]] = words[2:]
    frame_time = re.search(r"Frame Time:\s*([-+.\deE]+)", tail)
    frames = re.search(r"Frames:\s*(\d+)", tail)
    if frame_time is None or frames is None:
        raise UserError("This BVH file has no Frames or no Frame Time.")
    numbers = np.array(tail[frame_time.end() :].split(), dtype=np.float64)
    width = sum(len(channels) for channels in skeleton.channels)
    if len(numbers) != int(frames[1]) * width:
        raise UserError(f"This BVH file announces {frames[1]} frames of {width} numbers but holds {len(numbers)}.")
    return skeleton, numbers.reshape(-1, width), float(frame_time[1])


def _motion(skeleton: Skeleton, values: np.ndarray) -> tuple[Tensor, Tensor]:
    """World rotations (F, J, 3, 3) and root positions (F, 3), in the file's axes and unit."""
    world: list[Tensor] = []
    position = torch.tensor(skeleton.offsets[0]).expand(len(values), 3).clone()
    column = 0
    for joint, channels in enumerate(skeleton.channels):
        local = torch.eye(3).expand(len(values), 3, 3)
        for channel in channels:
            axis = "XYZ".index(channel[0].upper())
            number = torch.from_numpy(values[:, column]).float()
            column += 1
            if channel[1:].lower() == "rotation":
                local = local @ about_axis(axis, torch.deg2rad(number))
            elif joint == 0:
                position[:, axis] = number
        parent = skeleton.parents[joint]
        world.append(local if parent < 0 else world[parent] @ local)
    return torch.stack(world, dim=1), position


def _find(names: list[str], joint: str) -> int | None:
    """The file's joint that is one of the 22, by name."""
    side, _, plain = joint.partition("_")
    for pattern in _NAMES[plain]:
        for word in (side, side[0]):
            wanted = pattern.format(s=word)
            if wanted in names:
                return names.index(wanted)
    return None


def _line(skeleton: Skeleton, joint: int) -> list[int]:
    """A joint's ancestors from the root on, itself last."""
    line = [joint]
    while skeleton.parents[line[0]] >= 0:
        line.insert(0, skeleton.parents[line[0]])
    return line


def _along(world: Tensor, line: list[int], share: float) -> Tensor:
    """World rotation (F, 3, 3) at a share of the way along a line of joints, from just below its first to its last."""
    place = share * (len(line) - 1)
    before, after = line[int(place)], line[min(int(place) + 1, len(line) - 1)]
    weight = place - int(place)
    if weight < 1e-6:
        return world[:, before]
    first, second = quaternion_from_matrix(world[:, before]), quaternion_from_matrix(world[:, after])
    second = torch.where((first * second).sum(-1, keepdim=True) < 0, -second, second)
    return matrix_from_quaternion(torch.lerp(first, second, weight))


def read(path: str | Path) -> Recording:
    """A BVH file as a recording of the 22 joints, Y up.

    Sizes are brought to metres by taking the skeleton, hips to head and feet, for one of a person.
    """
    path = Path(path)
    try:
        skeleton, values, frame_time = parse(path.read_text(errors="replace"))
    except ValueError as error:
        raise UserError(f"{path.name}: {error}") from error
    names = [re.sub(r"[^a-z0-9]", "", name.split(":")[-1].lower()) for name in skeleton.names]
    found = {joint: _find(names, joint) for joint in JOINTS if "_" in joint}
    needed = [
        f"{side}_{joint}"
        for side in ("left", "right")
        for joint in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")
    ]
    missing = [joint for joint in needed if found[joint] is None]
    if missing:
        raise UserError(f"{path.name}: no joint recognised as {missing[0]}: rename the joints as CMU or Mixamo do.")
    world, position = _motion(skeleton, values)
    rest = torch.tensor(skeleton.offsets)
    for joint in range(1, len(rest)):
        rest[joint] += rest[skeleton.parents[joint]]
    line_left, line_right = _line(skeleton, found["left_shoulder"]), _line(skeleton, found["right_shoulder"])
    trunk = [joint for joint in line_left if joint in line_right]
    head = next((index for index, name in enumerate(names) if name == "head"), None)
    if head is None:
        raise UserError(f"{path.name}: no joint recognised as head: rename the joints as CMU or Mixamo do.")
    neck = [joint for joint in _line(skeleton, head) if joint not in trunk]
    # Our axes in the file's: left from hip to hip, up from hips to head.
    hips = rest[[found["left_hip"], found["right_hip"]]]
    left = torch.nn.functional.normalize(hips[0] - hips[1], dim=0)
    up = rest[head] - hips.mean(0)
    up = torch.nn.functional.normalize(up - (up @ left) * left, dim=0)
    axes = torch.stack((left, up, torch.linalg.cross(left, up)))
    # Snap to the file's own axes where the rest pose leans a little.
    snapped = torch.zeros_like(axes)
    snapped[torch.arange(3), axes.abs().argmax(1)] = axes.gather(1, axes.abs().argmax(1)[:, None]).sign()[:, 0]
    axes = snapped if snapped.det() > 0.5 else axes
    world, rest = axes @ world @ axes.T, rest @ axes.T
    height = float(rest[head, 1] - torch.minimum(rest[found["left_ankle"], 1], rest[found["right_ankle"], 1]))
    metres = _UNIT_HEIGHT * 0.84 / height

    result: list[Tensor] = []
    for index, joint in enumerate(JOINTS):
        parent = result[PARENTS[index]] if index else world[:, trunk[0]]
        if joint == "pelvis":
            turned = world[:, trunk[0]]
        elif joint.startswith("spine"):
            turned = _along(world, trunk, int(joint[-1]) / 3)
        elif joint == "neck":
            turned = _along(world, [trunk[-1], *neck], 0.5)
        elif joint == "head":
            turned = world[:, head]
        else:
            at = found[joint]
            turned = parent if at is None else world[:, at] @ _from_t_pose(joint, found, rest)
        result.append(turned)
    local = local_from_world(torch.stack(result, dim=1), PARENTS)
    return Recording(path.stem, path.stem, quaternion_from_matrix(local), position @ axes.T * metres, 1 / frame_time)


def _from_t_pose(joint: str, found: dict[str, int | None], rest: Tensor) -> Tensor:
    """Rotation (3, 3) of a limb from the T-pose to the file's rest pose, the twist left as small as can be."""
    side, _, plain = joint.partition("_")
    chains = {
        "shoulder": ("shoulder", "elbow"), "elbow": ("elbow", "wrist"), "wrist": ("elbow", "wrist"),
        "hip": ("hip", "knee"), "knee": ("knee", "ankle"),
    }  # fmt: skip
    if plain not in chains:
        return torch.eye(3)
    start, end = (found[f"{side}_{name}"] for name in chains[plain])
    sign = 1.0 if side == "left" else -1.0
    target = rest.new_tensor([sign, 0.0, 0.0] if plain in ("shoulder", "elbow", "wrist") else [0.0, -1.0, 0.0])
    return smallest_between(target, rest[end] - rest[start])
