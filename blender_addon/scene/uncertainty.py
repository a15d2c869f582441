"""How unsure the model is, as colours on the mesh: blue where all alternatives agree, red where they differ much."""

from __future__ import annotations

import bpy
import numpy as np

from . import person as people

ATTRIBUTE = "Uncertainty"
COLOURS = np.array([[0.10, 0.25, 0.75], [0.15, 0.65, 0.75], [0.30, 0.75, 0.25], [0.95, 0.80, 0.15], [0.85, 0.12, 0.10]])
"""sRGB, evenly spaced from 0 to the scale's end."""
SCALE = 0.1
"""Metres of standard deviation that are red."""


def colours(spread: np.ndarray, scale: float = SCALE) -> np.ndarray:
    """(V,) metres → (V,4) sRGB with alpha."""
    position = np.clip(spread / scale, 0, 1) * (len(COLOURS) - 1)
    channels = [np.interp(position, np.arange(len(COLOURS)), COLOURS[:, channel]) for channel in range(3)]
    return np.stack([*channels, np.ones_like(position)], -1)


def paint(person: bpy.types.Object, scale: float = SCALE) -> bool:
    """Write the colour attribute and make it the one that is shown; False where the mesh knows no uncertainty."""
    mesh = person.data
    spread = people.get_attribute(mesh, people.SPREAD)
    if spread is None:
        return False
    layer = mesh.color_attributes.get(ATTRIBUTE) or mesh.color_attributes.new(ATTRIBUTE, "BYTE_COLOR", "POINT")
    layer.data.foreach_set("color_srgb", colours(spread, scale).astype(np.float32).ravel())
    mesh.color_attributes.active_color = layer
    mesh.color_attributes.render_color_index = mesh.color_attributes.find(ATTRIBUTE)
    mesh.update()
    return True
