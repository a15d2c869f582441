"""The panels for clips: in the sidebar tab MEGA of the 3D view, and in the movie clip editor."""

from __future__ import annotations

import bpy

from . import status
from .layouts import SidebarPanel, choice, main_button, split, values


def _settings(layout: bpy.types.UILayout, settings: bpy.types.PropertyGroup) -> None:
    values(layout.column(align=True), settings, "start", "end", "step")
    choice(layout, settings, "output")


class MEGA_PT_clip(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_clip"
    bl_label = "Clip"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = split(self.layout), context.scene.mega_clip
        row = layout.row(align=True)
        row.prop(settings, "clip")
        row.operator("mega.choose_clip", text="", icon="FILE_MOVIE")
        _settings(layout, settings)
        main_button(layout, "mega.recover_clip", icon="TRACKER")


class MEGA_PT_clip_options(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_clip_options"
    bl_label = "Clip Options"
    bl_parent_id = "MEGA_PT_clip"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = split(self.layout), context.scene.mega_clip
        values(layout, settings, "hypotheses", "smoothing", "storage", "match", "set_range")


class MEGA_PT_clip_editor(bpy.types.Panel):
    """In the movie clip editor: the people of the clip that is open there."""

    bl_idname = "MEGA_PT_clip_editor"
    bl_label = "Recover"
    bl_space_type = "CLIP_EDITOR"
    bl_region_type = "UI"
    bl_category = "MEGA"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return context.space_data.clip is not None

    def draw(self, context: bpy.types.Context) -> None:
        layout = split(self.layout)
        _settings(layout, context.scene.mega_clip)
        main_button(layout, "mega.recover_clip", icon="TRACKER").clip = context.space_data.clip.name
        status.draw(layout, context)


CLASSES = (MEGA_PT_clip, MEGA_PT_clip_options, MEGA_PT_clip_editor)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
