"""Random people: in a grid on the floor, or one body that morphs from one to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence

import bpy
import numpy as np

from ...mega_backend.protocol import BodyTopology
from . import hypotheses, person, place
from .origin import Origin

SPACING = 1.3
"""Metres between two people of a grid."""
FRAMES = 24
"""Frames from one person to the next of an animation."""
NAME = "Random People"


def singles(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """A person with N hypotheses as N people with one each."""
    count = len(arrays["vertices"])
    many = ("tokens", "log_probability", "rotation", "translation", "vertices", "joints")
    return [
        {name: array[index : index + 1] if name in many else array for name, array in arrays.items()}
        for index in range(count)
    ]


def add(
    scene: bpy.types.Scene, people: Sequence[dict[str, np.ndarray]], topology: BodyTopology, origin: Origin,
    animate: bool,
) -> list[bpy.types.Object]:  # fmt: skip
    """Put people into a collection of their own, feet on the floor; gives the objects."""
    free = place.free(scene, set())
    collection = bpy.data.collections.new(NAME)
    scene.collection.children.link(collection)
    start = 0.0 if free is None else free + SPACING / 2
    if animate:
        many = ("tokens", "log_probability", "rotation", "translation", "vertices")
        joined = {name: np.concatenate([_standing(each)[name] for each in people]) for name in many}
        joined |= {name: people[0][name] for name in ("box", "landmarks", "landmarks_3d")}
        made = [person.add(NAME, joined, topology)]
        made[0].location.x = start
        _animate(scene, made[0], len(people))
    else:
        columns = math.ceil(math.sqrt(len(people)))
        made = []
        for index, each in enumerate(people):
            each = {name: array for name, array in each.items() if name != "spread"}
            made.append(person.add(f"Random Person {index + 1}", _standing(each), topology))
            made[-1].location.x = start + SPACING * (index % columns)
            made[-1].location.y = SPACING * (index // columns)
    for each in made:
        collection.objects.link(each)
        origin.note(each, topology)
    return made


def _standing(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same person over the origin of camera space with the lowest vertex at height 0 (y points down there)."""
    vertices = arrays["vertices"]
    centre, floor = vertices[0].mean(0), vertices[0, :, 1].max()
    move = np.array([centre[0], floor, centre[2]], np.float32)
    return {**arrays, "vertices": vertices - move, "translation": arrays["translation"] - move}


def _animate(scene: bpy.types.Scene, made: bpy.types.Object, count: int) -> None:
    for index in range(count):
        hypotheses.show(made, index)
        hypotheses.keyframe(made, scene.frame_start + index * FRAMES)
    scene.frame_end = max(scene.frame_end, scene.frame_start + (count - 1) * FRAMES)
