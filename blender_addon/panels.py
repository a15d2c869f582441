"""The sidebar tab MEGA. It shows and asks; everything is done by operators."""

from __future__ import annotations

import bpy

from . import properties, session, text
from .backend.state import Phase
from .jobs import board
from .scene import hypotheses


class SidebarPanel:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "MEGA"


class MEGA_PT_recover(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_recover"
    bl_label = "Recover"

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.mega
        layout.use_property_split = True
        layout.use_property_decorate = False
        row = layout.row(align=True)
        row.prop(settings, "picture", text="Picture")
        layout.prop(settings, "hypotheses")
        layout.prop(settings, "seed")
        button = layout.row()
        button.scale_y = 1.5
        button.operator("mega.recover", icon="OUTLINER_OB_ARMATURE")
        for index, job in enumerate(board.jobs):
            row = layout.row(align=True)
            row.progress(factor=job.fraction, type="BAR", text=f"{job.title} {job.text}".strip())
            row.operator("mega.cancel", text="", icon="X").index = index
        status, icon = session.status()
        text.draw(layout, context, status, icon)
        if session.backend.state.phase in (Phase.MISSING, Phase.FAILED):
            layout.operator("mega.preferences", icon="PREFERENCES")


class MEGA_PT_image(bpy.types.Panel):
    """In the image editor: the people of the image that is open there."""

    bl_idname = "MEGA_PT_image"
    bl_label = "Recover"
    bl_space_type = "IMAGE_EDITOR"
    bl_region_type = "UI"
    bl_category = "MEGA"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return context.space_data.image is not None

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.mega
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.prop(settings, "hypotheses")
        layout.prop(settings, "seed")
        layout.operator("mega.recover", icon="OUTLINER_OB_ARMATURE").image = context.space_data.image.name


class MEGA_PT_sampling(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_sampling"
    bl_label = "Sampling"
    bl_parent_id = "MEGA_PT_recover"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.mega
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.prop(settings, "steps")
        layout.prop(settings, "temperature")


class MEGA_PT_person(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_person"
    bl_label = "Person"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        person = context.active_object
        return person is not None and person.type == "MESH" and person.mega.is_person

    def draw(self, context: bpy.types.Context) -> None:
        layout, person = self.layout, context.active_object
        count = hypotheses.count(person)
        column = layout.column(align=True)
        column.enabled = count > 1
        shown = min(person.mega.hypothesis, count - 1)
        column.label(text=f"Alternative {shown} of {count - 1}" if shown else "Best Guess")
        row = column.row(align=True)
        row.operator("mega.step", text="", icon="TRIA_LEFT").step = -1
        row.prop(person.mega, "hypothesis", text="")
        row.operator("mega.step", text="", icon="TRIA_RIGHT").step = 1
        row = column.row(align=True)
        row.operator("mega.keep", icon="CHECKMARK")
        row.operator("mega.keyframe", icon="KEY_HLT", text="Keyframe")
        showing = context.scene.mega.show_uncertainty
        label = "Hide Uncertainty" if showing else "Show Uncertainty"
        layout.operator("mega.show_uncertainty", icon="COLOR", text=label, depress=showing).show = not showing


class MEGA_PT_locks(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_locks"
    bl_label = "Lock and Re-Roll"
    bl_parent_id = "MEGA_PT_person"

    def draw(self, context: bpy.types.Context) -> None:
        layout, note = self.layout, context.active_object.mega
        grid = layout.grid_flow(row_major=True, columns=2, even_columns=True, align=True)
        for name in properties.LOCKS:
            grid.prop(note, name, toggle=True, icon="LOCKED" if getattr(note, name) else "UNLOCKED")
        layout.operator("mega.resample", icon="FILE_REFRESH")
        layout.label(text=f"Seed {note.seed}")


class MEGA_PT_random(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_random"
    bl_label = "Random People"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.mega
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.prop(settings, "random_count")
        layout.prop(settings, "seed")
        layout.row().prop(settings, "random_arrange", expand=True)
        layout.operator("mega.random", icon="COMMUNITY").keep_locked = False
        person = context.active_object
        if person is not None and person.mega.is_person and properties.locked_parts(person.mega):
            layout.operator("mega.random", icon="LOCKED", text="With Locked Parts").keep_locked = True


CLASSES = (MEGA_PT_recover, MEGA_PT_sampling, MEGA_PT_person, MEGA_PT_locks, MEGA_PT_random, MEGA_PT_image)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
