"""Animation curves in bulk, in layered actions (Blender 4.4 and later) and in those before."""

from __future__ import annotations

from typing import Any

import bpy
import numpy as np

INTERPOLATIONS = {"CONSTANT": 0, "LINEAR": 1, "BEZIER": 2}
"""As Blender numbers them where they are set in bulk."""


def channels(owner: bpy.types.ID, name: str) -> Any:
    """What holds `fcurves` and `groups` of a new action of this datablock."""
    action = bpy.data.actions.new(name)
    data = owner.animation_data_create()
    data.action = action
    if not hasattr(action, "slots"):
        return action
    slot = action.slots.new(id_type=owner.id_type, name=owner.name)
    strip = action.layers.new("Layer").strips.new(type="KEYFRAME")
    data.action_slot = slot
    return strip.channelbag(slot, ensure=True)


def write(
    holder: Any, path: str, index: int, frames: np.ndarray, values: np.ndarray, group: Any = None,
    interpolation: str = "LINEAR",
) -> None:  # fmt: skip
    """One curve with a key at each of frames (F,), which grow, with values (F,)."""
    curve = holder.fcurves.new(path, index=index)
    if group is not None:
        curve.group = group
    points = curve.keyframe_points
    points.add(len(frames))
    points.foreach_set("co", np.stack([frames, values], 1).astype(np.float32).ravel())
    points.foreach_set("interpolation", np.full(len(frames), INTERPOLATIONS[interpolation], np.int32))
    curve.update()


def hide_outside(owner: bpy.types.Object, holder: Any, runs: list[tuple[float, float]]) -> None:
    """Show an object from the start of each run to its end (frames, in order), and hide it at all other times."""
    keys = [(runs[0][0] - 1, 1.0)]
    for number, (start, end) in enumerate(runs):
        following = runs[number + 1][0] if number + 1 < len(runs) else np.inf
        keys.append((start, 0.0))
        if end + 1 < following:
            keys.append((end + 1, 1.0))
    frames, values = (np.array(column) for column in zip(*keys, strict=True))
    for path in ("hide_viewport", "hide_render"):
        write(holder, path, 0, frames, values, interpolation="CONSTANT")
