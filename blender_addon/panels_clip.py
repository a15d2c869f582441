"""The panels for clips: in the sidebar tab MEGA of the 3D view, and in the movie clip editor."""

from __future__ import annotations

import bpy

from . import status
from .panels import SidebarPanel, split


def _settings(layout: bpy.types.UILayout, settings: bpy.types.PropertyGroup) -> None:
    column = layout.column(align=True)
    column.prop(settings, "start")
    column.prop(settings, "end")
    column.prop(settings, "step")
    layout.row().prop(settings, "output", expand=True)


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
        button = layout.row()
        button.scale_y = 1.5
        button.operator("mega.recover_clip", icon="TRACKER")


class MEGA_PT_clip_options(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_clip_options"
    bl_label = "Clip Options"
    bl_parent_id = "MEGA_PT_clip"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = split(self.layout), context.scene.mega_clip
        for name in ("hypotheses", "smoothing", "storage", "match", "set_range"):
            layout.prop(settings, name)


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
        button = layout.row()
        button.scale_y = 1.5
        button.operator("mega.recover_clip", icon="TRACKER").clip = context.space_data.clip.name
        status.draw_jobs(layout, context)
        status.draw_state(layout, context)


CLASSES = (MEGA_PT_clip, MEGA_PT_clip_options, MEGA_PT_clip_editor)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
