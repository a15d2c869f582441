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


def number(person: bpy.types.Object) -> int:
    """Which hypothesis is shown, also where curves or a hand move the keys; of a mix the one that it has most of."""
    keys = person.data.shape_keys if person.type == "MESH" else None
    if keys is None:
        return 0
    values = [key.value for key in keys.key_blocks[1:]]
    shares = [1.0 - sum(values), *values]
    return shares.index(max(shares))


def is_mixed(person: bpy.types.Object) -> bool:
    """Whether what is shown is a mix of several hypotheses."""
    keys = person.data.shape_keys
    return keys is not None and any(abs(key.value) > 1e-3 and abs(key.value - 1) > 1e-3 for key in keys.key_blocks[1:])


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
    arrays, row = people.stored(person), number(person)
    chosen = {name: arrays[name][row : row + 1] for name in people.PER_HYPOTHESIS if row < len(arrays.get(name, ()))}
    people.store(person, chosen)
    people.set_hypotheses(person, shape[None])
    person.data.shape_keys.animation_data_clear()  # there is nothing left to morph between


def keyframe(person: bpy.types.Object, frame: float) -> None:
    """Key the mix of hypotheses at a frame: between two such frames the body morphs."""
    for key in person.data.shape_keys.key_blocks[1:] if person.data.shape_keys else ():
        key.keyframe_insert("value", frame=frame)
