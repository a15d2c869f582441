"""A whole result: a collection named after the picture, with an empty that holds the camera and the people.

The empty's place puts the people's feet on the floor, the first person over the world's x axis, and all of it beside
what the scene has already, so that the camera sees nothing else. Moving or tilting it moves all of them together: the
camera keeps matching.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np
from mathutils import Vector

from ...mega_backend.protocol import BodyTopology, Message
from . import axes, camera, person


@dataclass(frozen=True)
class Origin:
    """What a result was made from; it is noted on every object."""

    seed: int = 0
    steps: int = 5
    temperature: float = 1.0
    model: str = ""


class Importer:
    """Takes the messages of one picture as they arrive. Names, not references: undo may come in between."""

    def __init__(self, scene: bpy.types.Scene, topology: BodyTopology, picture: Path | None, origin: Origin):
        self.scene, self.topology, self.picture, self.origin = scene.name, topology, picture, origin
        self.title = picture.stem if picture else "People"
        self._collection = self._root = ""
        self._focal_length, self._size = 1000.0, (1, 1)
        self.objects: list[str] = []

    def receive(self, message: Message) -> bpy.types.Object | None:
        """Put a `scene` or `person` message into the Blender scene; gives the object of a person."""
        if message.kind == "scene":
            self._focal_length = float(message.fields["focal_length"])
            self._size = tuple(int(side) for side in message.fields["picture_size"])
            return None
        if not self.objects:
            self._begin()
        return self._person(message.arrays)

    def _begin(self) -> None:
        """Collection, root and camera: only once there is a person to look at."""
        scene = bpy.data.scenes[self.scene]
        collection = bpy.data.collections.new(self.title)
        scene.collection.children.link(collection)
        root = bpy.data.objects.new(self.title, None)
        root.empty_display_size = 0.25
        collection.objects.link(root)
        view = camera.add(f"{self.title} Camera", self._focal_length, self._size, self.picture)
        view.parent = root
        collection.objects.link(view)
        camera.use(scene, view, self._size)
        self._collection, self._root = collection.name, root.name

    def _person(self, arrays: dict[str, np.ndarray]) -> bpy.types.Object:
        collection, root = bpy.data.collections[self._collection], bpy.data.objects[self._root]
        made = person.add(f"{self.title} Person {len(self.objects) + 1}", arrays, self.topology)
        made.parent = root
        collection.objects.link(made)
        note = made.mega
        note.is_person = True
        note.seed, note.steps, note.temperature = self.origin.seed, self.origin.steps, self.origin.temperature
        note.model, note.body = self.origin.model, self.topology.name
        note.focal_length, note.picture_size = self._focal_length, self._size
        note.picture = str(self.picture or "")
        points = axes.to_blender(arrays["vertices"][0])
        floor = -float(points[:, 2].min())
        if not self.objects:
            depth = float(made.location.y)
            root[HALF_WIDTH] = depth * self._size[0] / (2 * self._focal_length)
            free = _free_place(bpy.data.scenes[self.scene], {made, root})
            place = 0.0 if free is None else free + root[HALF_WIDTH]
            root.location = (place - made.location.x * (free is None), -depth, floor)
            view = bpy.data.scenes[self.scene].camera
            view.data.clip_end = max(view.data.clip_end, 4 * depth)
        root.location.z = max(root.location.z, floor)
        self.objects.append(made.name)
        return made


HALF_WIDTH = "mega_half_width"
"""On a root: half the width of what its camera sees, at the first person's distance, in metres."""
MARGIN = 0.5


def _free_place(scene: bpy.types.Scene, new: set[bpy.types.Object]) -> float | None:
    """The x beyond which the scene has nothing that could stand in a camera's way; None where it has nothing at all."""
    taken = []
    for each in scene.objects:
        if each in new:
            continue
        if HALF_WIDTH in each:
            taken.append(each.location.x + each[HALF_WIDTH])
        elif each.type in ("MESH", "CURVE", "SURFACE", "META", "FONT", "CURVES", "VOLUME") and each.visible_get():
            taken += [(each.matrix_world @ Vector(corner)).x for corner in each.bound_box]
    return max(taken) + MARGIN if taken else None
