"""The simple skin that every new mesh wears."""

from __future__ import annotations

import bpy

NAME = "MEGA Skin"
COLOUR = (0.72, 0.46, 0.36, 1.0)


def skin() -> bpy.types.Material:
    """The skin material, made once per file."""
    found = bpy.data.materials.get(NAME)
    if found is not None:
        return found
    material = bpy.data.materials.new(NAME)
    material.diffuse_color = COLOUR
    if material.node_tree is None:
        material.use_nodes = True
    shader = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
    shader.inputs["Base Color"].default_value = COLOUR
    shader.inputs["Roughness"].default_value = 0.55
    shader.inputs["Subsurface Weight"].default_value = 0.1
    shader.inputs["Subsurface Radius"].default_value = (0.01, 0.004, 0.002)
    return material
