"""The rig of a person as an armature: bones under the names that retargeting tools know, a skinned mesh, an action."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import bpy
import numpy as np
from mathutils import Vector

from ...mega_backend.protocol import BodyTopology
from ...mega_backend.protocol_motion import Build, RigTopology
from . import actions, axes, person

_TRUNK = {
    "root": "Hips", "spine05": "Spine", "spine04": "Spine1", "spine03": "Spine2", "spine02": "Spine3",
    "spine01": "Spine4", "neck01": "Neck", "neck02": "Neck1", "neck03": "Neck2", "head": "Head",
}  # fmt: skip
_LIMBS = {
    "upperleg01": "UpLeg", "upperleg02": "UpLegTwist", "lowerleg01": "Leg", "foot": "Foot", "toe2-1": "ToeBase",
    "clavicle": "Shoulder", "upperarm01": "Arm", "upperarm02": "ArmTwist", "lowerarm01": "ForeArm",
    "lowerarm02": "ForeArmTwist", "wrist": "Hand",
}  # fmt: skip
_FINGERS = {"1": "Thumb", "2": "Index", "3": "Middle", "4": "Ring", "5": "Pinky"}
_POINTS_AT = {"root": "spine05", "spine01": "neck01", "wrist": "finger3-1", "foot": "toe2-1"}
"""Which of several children a bone's tail lies at."""
WEIGHT_STEPS = 1000
"""Weights are rounded to so many steps: vertices of one weight are written together."""


def bone_name(name: str) -> str:
    """A bone of the bundled body under the name that retargeting tools know; others keep theirs."""
    if name in _TRUNK:
        return _TRUNK[name]
    stem, dot, side = name.rpartition(".")
    sides = {"L": "Left", "R": "Right"}
    if not dot or side not in sides:
        return name
    if stem in _LIMBS:
        return sides[side] + _LIMBS[stem]
    if found := re.fullmatch(r"finger(\d)-(\d)", stem):
        return f"{sides[side]}Hand{_FINGERS[found[1]]}{found[2]}"
    if found := re.fullmatch(r"toe(\d)-(\d)", stem):
        return f"{sides[side]}Toe{found[1]}"
    return name


@dataclass(frozen=True)
class Motion:
    """A person's poses: scene frames (F,), turns of the bones (F,J,3,3) and places of the root (F,3), camera space."""

    frames: np.ndarray
    rotations: np.ndarray
    root: np.ndarray


class Rigger:
    """Makes one person's armature and skinned mesh, in steps that are short each.

    Args:
        name: of the person. parent, collection: names of what holds it. place: (3,) is added to its location.
    """

    def __init__(
        self, name: str, rig: RigTopology, build: Build, topology: BodyTopology, collection: str, parent: str = "",
        place: Sequence[float] = (0.0, 0.0, 0.0),
    ):  # fmt: skip
        self.name, self.rig, self.build, self.topology = name, rig, build, topology
        self.collection, self.parent, self.place = collection, parent, np.asarray(place, np.float64)
        self.armature = self.mesh = ""
        self.names = [bone_name(each) for each in rig.names]
        vertices, heads = (_upright(points.astype(np.float64)) for points in (build.vertices, build.heads))
        # The object's origin lies on the floor below the hips.
        ground = np.array([heads[0, 0], heads[0, 1], vertices[:, 2].min()])
        self._vertices, self._heads = vertices - ground, heads - ground
        self._axes = np.empty((0, 3, 3))

    def steps(self, context: bpy.types.Context, motion: Motion, animate: bool) -> Iterator[None]:
        """Everything. `animate` makes an action of the motion; otherwise the armature takes its first pose."""
        self._make_armature(context, motion)
        yield
        yield from self._make_mesh()
        quaternions, places = self._pose(motion)
        yield
        armature = bpy.data.objects[self.armature]
        if animate:
            yield from self._animate(armature, motion.frames, quaternions, places)
            return
        for number, name in enumerate(self.names):
            armature.pose.bones[name].rotation_quaternion = quaternions[0, number]
        armature.pose.bones[self.names[0]].location = places[0]

    def _make_armature(self, context: bpy.types.Context, motion: Motion) -> None:
        data = bpy.data.armatures.new(f"{self.name} Rig")
        data.display_type = "STICK"
        made = bpy.data.objects.new(data.name, data)
        made.show_in_front = True
        collection = bpy.data.collections[self.collection]
        collection.objects.link(made)
        self.armature = made.name
        if self.parent:
            made.parent = bpy.data.objects[self.parent]
        made.location = axes.to_blender(motion.root[0]) - self._heads[0] + self.place
        with _editing(context, made):
            self._make_bones(data)
        self._axes = np.array([np.array(data.bones[name].matrix_local)[:3, :3] for name in self.names])

    def _make_bones(self, data: bpy.types.Armature) -> None:
        tails = self._tails()
        bones = []
        for number, name in enumerate(self.names):
            bone = data.edit_bones.new(name)
            bone.head, bone.tail = self._heads[number], tails[number]
            bone.align_roll(Vector((0.0, -1.0, 0.0)))
            parent = int(self.rig.parents[number])
            if parent >= 0:
                bone.parent = bones[parent]
                bone.use_connect = bool(np.linalg.norm(tails[parent] - self._heads[number]) < 1e-6)
            bones.append(bone)

    def _tails(self) -> np.ndarray:
        """(J,3): at a child's head where there is one, else on along the parent's direction."""
        names, parents, heads = self.rig.names, self.rig.parents, self._heads
        tails = np.empty_like(heads)
        for number, name in enumerate(names):
            children = np.flatnonzero(parents == number)
            stem, _, side = name.partition(".")
            wanted = _POINTS_AT.get(stem, "") + (f".{side}" if side else "")
            chosen = next((child for child in children if names[child] == wanted), None)
            if len(children):
                tails[number] = heads[children[0] if chosen is None else chosen]
            elif name == "head":
                tails[number] = heads[number] + [0.0, 0.0, 0.18]
            else:
                tails[number] = heads[number] + 0.7 * (heads[number] - heads[max(parents[number], 0)])
            if np.linalg.norm(tails[number] - heads[number]) < 0.005:
                tails[number] = heads[number] + [0.0, 0.0, 0.02]
        return tails

    def _make_mesh(self) -> Iterator[None]:
        """The person's own body in the armature's rest pose, its vertices hanging on the bones."""
        made = person.add_plain(f"{self.name} Skinned", self._vertices, self.topology)
        self.mesh = made.name
        bpy.data.collections[self.collection].objects.link(made)
        made.parent = bpy.data.objects[self.armature]
        yield
        steps = np.rint(self.rig.weights * WEIGHT_STEPS).astype(np.int32)
        for number, name in enumerate(self.names):
            made = bpy.data.objects[self.mesh]
            group = made.vertex_groups.new(name=name)
            vertices, columns = np.nonzero((self.rig.joints == number) & (steps > 0))
            values = steps[vertices, columns]
            order = np.argsort(values, kind="stable")
            weights, starts = np.unique(values[order], return_index=True)
            for weight, own in zip(weights, np.split(vertices[order], starts[1:]), strict=True):
                group.add(own.tolist(), float(weight) / WEIGHT_STEPS, "REPLACE")
            yield
        modifier = bpy.data.objects[self.mesh].modifiers.new("Armature", "ARMATURE")
        modifier.object = bpy.data.objects[self.armature]

    def _pose(self, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
        """Quaternions (F,J,4) of all bones and places (F,3) of the first, each in its bone's own axes."""
        turns = axes.to_blender(np.swapaxes(motion.rotations.astype(np.float64), -1, -2))
        turns = _upright(np.swapaxes(turns, -1, -2))  # (F,J,3,3): from the armature's axes into the scene's
        parents = self.rig.parents
        above = turns[:, np.maximum(parents, 0)]
        above[:, parents < 0] = np.eye(3)
        own = self._axes
        local = np.swapaxes(own, -1, -2) @ np.swapaxes(above, -1, -2) @ turns @ own
        object_place = np.array(bpy.data.objects[self.armature].location) - self.place
        moved = axes.to_blender(motion.root.astype(np.float64)) - object_place - self._heads[0]
        return steady(quaternions(local)), moved @ own[0]

    def _animate(
        self, armature: bpy.types.Object, frames: np.ndarray, turns: np.ndarray, places: np.ndarray
    ) -> Iterator[None]:
        holder = actions.channels(armature, f"{self.name} Action")
        for number, name in enumerate(self.names):
            group = holder.groups.new(name)
            path = f'pose.bones["{name}"].'
            for index in range(4):
                actions.write(holder, path + "rotation_quaternion", index, frames, turns[:, number, index], group)
            if number == 0:
                for index in range(3):
                    actions.write(holder, path + "location", index, frames, places[:, index], group)
            yield
        runs = visible_runs(frames)
        actions.hide_outside(armature, holder, runs)
        mesh = bpy.data.objects[self.mesh]
        actions.hide_outside(mesh, actions.channels(mesh, f"{self.name} Visibility"), runs)


def visible_runs(frames: np.ndarray) -> list[tuple[float, float]]:
    """Stretches (first, last) of scene frames without a gap: a gap is longer than the usual step between frames."""
    frames = np.asarray(frames, np.float64)
    if len(frames) == 1:
        return [(float(frames[0]), float(frames[0]))]
    usual = max(float(np.median(np.diff(frames))), 1.0)
    breaks = np.flatnonzero(np.diff(frames) > 1.5 * usual)
    starts, ends = [0, *(breaks + 1)], [*breaks, len(frames) - 1]
    return [(float(frames[a]), float(frames[b])) for a, b in zip(starts, ends, strict=True)]


def quaternions(matrices: np.ndarray) -> np.ndarray:
    """Unit quaternions (…,4), w first, of rotations (…,3,3): of four ways to compute each, that of the largest part."""
    m = matrices
    x, y, z = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    a, b, c = m[..., 2, 1], m[..., 0, 2], m[..., 1, 0]
    d, e, f = m[..., 1, 2], m[..., 2, 0], m[..., 0, 1]
    rows = np.stack([
        np.stack([1 + x + y + z, a - d, b - e, c - f], -1),
        np.stack([a - d, 1 + x - y - z, c + f, b + e], -1),
        np.stack([b - e, c + f, 1 - x + y - z, a + d], -1),
        np.stack([c - f, b + e, a + d, 1 - x - y + z], -1),
    ], -2)  # fmt: skip
    best = np.argmax(np.diagonal(rows, axis1=-2, axis2=-1), -1)
    chosen = np.take_along_axis(rows, best[..., None, None], -2)[..., 0, :]
    return chosen / np.linalg.norm(chosen, axis=-1, keepdims=True)


def steady(turns: np.ndarray) -> np.ndarray:
    """Quaternions (F,…,4) with signs such that neighbours lie close, so that what is between them is between poses."""
    dots = (turns[1:] * turns[:-1]).sum(-1, keepdims=True)
    return np.concatenate([turns[:1], turns[1:] * np.cumprod(np.where(dots < 0, -1.0, 1.0), 0)])


def _upright(points: np.ndarray) -> np.ndarray:
    """(…,3) body axes (y up, facing +z) → an armature's (z up, facing −y)."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


class _editing:
    """Edit mode of one object for as long as this lasts; the object is the active one afterwards."""

    def __init__(self, context: bpy.types.Context, edited: bpy.types.Object):
        self.context, self.edited = context, edited

    def __enter__(self) -> None:
        if self.context.mode != "OBJECT":
            bpy.ops.object.mode_set(mode="OBJECT")
        self.context.view_layer.objects.active = self.edited
        bpy.ops.object.mode_set(mode="EDIT")

    def __exit__(self, *_: object) -> None:
        bpy.ops.object.mode_set(mode="OBJECT")
