"""Room for something new in a scene that has something already."""

from __future__ import annotations

import bpy
from mathutils import Vector

HALF_WIDTH = "mega_half_width"
"""On the root of a result: half the width of what its camera sees, at the first person's distance, in metres."""
MARGIN = 0.5
SOLID = ("MESH", "CURVE", "SURFACE", "META", "FONT", "CURVES", "VOLUME")


def free(scene: bpy.types.Scene, new: set[bpy.types.Object]) -> float | None:
    """The x beyond which nothing stands in a camera's way, besides the `new` objects; None in an empty scene."""
    taken = []
    for each in scene.objects:
        if each in new:
            continue
        if HALF_WIDTH in each:
            taken.append(each.location.x + each[HALF_WIDTH])
        elif each.type in SOLID and each.visible_get():
            taken += [(each.matrix_world @ Vector(corner)).x for corner in each.bound_box]
    return max(taken) + MARGIN if taken else None
