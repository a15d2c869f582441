"""The alternatives of a person: which is shown, keeping one, keyframing the choice."""

from __future__ import annotations

import bpy
import numpy as np

from . import person as people


def count(person: bpy.types.Object) -> int:
    """How many hypotheses a person has."""
    keys = person.data.shape_keys
    return len(keys.key_blocks) if keys else 1


def show(person: bpy.types.Object, index: int) -> None:
    """Show one hypothesis: its key at 1, all others at 0. Beyond the last one it shows the last."""
    keys = person.data.shape_keys
    if keys is None:
        return
    index = min(index, len(keys.key_blocks) - 1)
    for number, key in enumerate(keys.key_blocks):
        key.value = float(number == index and number > 0)


def shown(person: bpy.types.Object) -> np.ndarray:
    """(V,3) as the shape keys are mixed now, in the object's own space."""
    keys = person.data.shape_keys
    basis = people.coordinates(person.data.vertices if keys is None else keys.key_blocks[0].points)
    if keys is None:
        return basis
    return basis + sum(
        (key.value * (people.coordinates(key.points) - basis) for key in keys.key_blocks[1:] if key.value), 0.0
    )


def keep(person: bpy.types.Object) -> None:
    """Make what is shown now the one shape of the mesh; the other alternatives go."""
    shape = shown(person)
    tokens = people.stored(person).get("tokens")
    if tokens is not None:
        number = min(person.mega.hypothesis, len(tokens) - 1)
        arrays = people.stored(person)
        chosen = {name: arrays[name][number : number + 1] for name in people.PER_HYPOTHESIS if name in arrays}
        people.store(person, chosen)
    people.set_hypotheses(person, shape[None])
    person.mega.hypothesis = 0


def keyframe(person: bpy.types.Object, frame: float) -> None:
    """Key the mix of hypotheses at a frame: between two such frames the body morphs."""
    for key in person.data.shape_keys.key_blocks[1:] if person.data.shape_keys else ():
        key.keyframe_insert("value", frame=frame)
