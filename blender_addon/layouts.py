"""What the panels lay out alike."""

from __future__ import annotations

import bpy


class SidebarPanel:
    """A panel of the tab MEGA in the 3D view's sidebar."""

    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "MEGA"


def split(layout: bpy.types.UILayout) -> bpy.types.UILayout:
    """The layout with names left of their values, as Blender's own panels have them."""
    layout.use_property_split = True
    layout.use_property_decorate = False
    return layout


def values(layout: bpy.types.UILayout, owner: bpy.types.bpy_struct, *names: str) -> None:
    """These properties of the owner, one below the other."""
    for name in names:
        layout.prop(owner, name)


def choice(layout: bpy.types.UILayout, owner: bpy.types.bpy_struct, name: str) -> None:
    """An enumeration with all its items side by side."""
    layout.row().prop(owner, name, expand=True)


def main_button(layout: bpy.types.UILayout, operator: str, **options: str) -> bpy.types.OperatorProperties:
    """The tall button that a panel is there for; returns the operator's properties. options: text, icon."""
    row = layout.row()
    row.scale_y = 1.5
    return row.operator(operator, **options)
