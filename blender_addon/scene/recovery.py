"""A whole result: a collection named after the picture, with an empty that holds the camera and the people.

The empty's place puts the people's feet on the floor, the first person over the world's x axis, and all of it beside
what the scene has already, so that the camera sees nothing else. Moving or tilting it moves all of them together: the
camera keeps matching.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bpy
import numpy as np

from ...mega_backend.protocol import BodyTopology, Message
from . import axes, camera, person, place
from .origin import Origin


class Importer:
    """Takes the messages of one picture as they arrive. Names, not references: undo may come in between."""

    def __init__(
        self, scene: bpy.types.Scene, topology: BodyTopology, picture: Path | None, origin: Origin, image: str = ""
    ):
        self.scene, self.topology, self.picture, self.origin = scene.name, topology, picture, origin
        self.image = image
        self.title = picture.stem if picture else "People"
        self._collection = self._root = self._camera = ""
        self._focal_length, self._size = 1000.0, (1, 1)
        self.objects: list[str] = []

    def receive(self, message: Message) -> bpy.types.Object | None:
        """Put a `scene` or `person` message into the Blender scene; gives the object of a person."""
        if message.kind == "scene":
            self._focal_length = float(message.fields["focal_length"])
            self._size = tuple(int(side) for side in message.fields["picture_size"])
            self.origin = replace(
                self.origin, picture=str(self.picture or ""), picture_size=self._size, focal_length=self._focal_length
            )
            return None
        if self._collection not in bpy.data.collections or self._root not in bpy.data.objects:
            self._begin()
        return self._person(message.arrays)

    def _begin(self) -> None:
        """Collection, root and camera: once there is a person to look at, and again if they were undone or deleted."""
        self.objects = []
        scene = bpy.data.scenes[self.scene]
        collection = bpy.data.collections.new(self.title)
        scene.collection.children.link(collection)
        root = bpy.data.objects.new(self.title, None)
        root.empty_display_size = 0.25
        collection.objects.link(root)
        image = bpy.data.images.get(self.image) if self.image else None
        view = camera.add(f"{self.title} Camera", self._focal_length, self._size, self.picture, image)
        view.parent = root
        collection.objects.link(view)
        camera.use(scene, view, self._size)
        self._collection, self._root, self._camera = collection.name, root.name, view.name

    def _person(self, arrays: dict[str, np.ndarray]) -> bpy.types.Object:
        collection, root = bpy.data.collections[self._collection], bpy.data.objects[self._root]
        made = person.add(f"{self.title} Person {len(self.objects) + 1}", arrays, self.topology)
        made.parent = root
        collection.objects.link(made)
        self.origin.note(made, self.topology)
        points = axes.to_blender(arrays["vertices"][0])
        floor = -float(points[:, 2].min())
        if not self.objects:
            depth = float(made.location.y)
            root[place.HALF_WIDTH] = depth * self._size[0] / (2 * self._focal_length)
            free = place.free(bpy.data.scenes[self.scene], {made, root})
            x = -made.location.x if free is None else free + root[place.HALF_WIDTH]
            root.location = (x, -depth, floor)
            view = bpy.data.objects[self._camera].data
            view.clip_end = max(view.clip_end, 4 * depth)
        root.location.z = max(root.location.z, floor)
        self.objects.append(made.name)
        return made
