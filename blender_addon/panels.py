"""The sidebar tab MEGA. It shows and asks; everything is done by operators."""

from __future__ import annotations

import bpy

from . import chooser, properties, status, text
from .layouts import SidebarPanel, choice, main_button, split, values
from .scene import found, hypotheses


def _draw_people(layout: bpy.types.UILayout, settings: bpy.types.PropertyGroup) -> None:
    """Who was found in the picture, to choose from."""
    if not found.is_current(settings):
        layout.operator("mega.find_people", icon="VIEWZOOM")
        return
    column = layout.column(align=True)
    column.use_property_split = False
    row = column.row(align=True)
    count = len(settings.found)
    label = text.say("Found {count}; choose or draw", count=count) if count else text.say("Nobody found; draw a box")
    row.operator("mega.choose_people", text=label, icon="RESTRICT_SELECT_OFF", depress=chooser.state.area != 0)
    row.operator("mega.forget_people", text="", icon="X")
    grid = column.grid_flow(row_major=True, columns=3, even_columns=True, align=True)
    for number, person in enumerate(settings.found, 1):
        icon = "GREASEPENCIL" if person.drawn else "USER"
        grid.prop(person, "chosen", text=str(number), icon=icon, toggle=True)


def _recover_label(settings: bpy.types.PropertyGroup) -> str:
    if not (found.is_current(settings) and len(settings.found)):
        return text.say("Recover Mesh")
    count = sum(person.chosen for person in settings.found)
    return text.say("Recover {count} of {all} People", count=count, all=len(settings.found))


class MEGA_PT_recover(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_recover"
    bl_label = "Recover"

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = split(self.layout), context.scene.mega
        choice(layout, settings, "source")
        row = layout.row(align=True)
        if settings.source == "FILE":
            row.prop(settings, "picture")
        else:
            row.template_ID(settings, "image", open="image.open")
        values(layout, settings, "hypotheses", "seed")
        _draw_people(layout, settings)
        main_button(layout, "mega.recover", text=_recover_label(settings), icon="OUTLINER_OB_ARMATURE")
        status.draw(layout, context)


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
        layout, settings = split(self.layout), context.scene.mega
        values(layout, settings, "hypotheses", "seed")
        image = context.space_data.image
        if found.is_current(settings) and settings.source == "IMAGE" and settings.image == image:
            _draw_people(layout, settings)
        else:
            layout.operator("mega.find_people", icon="VIEWZOOM").image = image.name
        main_button(layout, "mega.recover", icon="OUTLINER_OB_ARMATURE").image = image.name
        status.draw(layout, context)


class MEGA_PT_sampling(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_sampling"
    bl_label = "Sampling"
    bl_parent_id = "MEGA_PT_recover"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = split(self.layout), context.scene.mega
        values(layout, settings, "steps", "temperature")


def _shown_label(person: bpy.types.Object, count: int) -> str:
    shown = person.mega.hypothesis
    if hypotheses.is_mixed(person):
        return text.say("Blend, mostly of {shown}", shown=shown)
    if shown:
        return text.say("Alternative {shown} of {count}", shown=shown, count=count - 1)
    return text.say("Best Guess")


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
        column.label(text=_shown_label(person, count))
        row = column.row(align=True)
        row.operator("mega.step", text="", icon="TRIA_LEFT").step = -1
        row.prop(person.mega, "hypothesis", text="")
        row.operator("mega.step", text="", icon="TRIA_RIGHT").step = 1
        row = column.row(align=True)
        row.operator("mega.keep", icon="CHECKMARK")
        row.operator("mega.keyframe", icon="KEY_HLT", text="Keyframe")
        showing = context.scene.mega.show_uncertainty
        label = text.say("Hide Uncertainty") if showing else text.say("Show Uncertainty")
        layout.operator("mega.show_uncertainty", icon="COLOR", text=label, depress=showing).show = not showing


class MEGA_PT_blend(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_blend"
    bl_label = "Blend"
    bl_parent_id = "MEGA_PT_person"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return hypotheses.count(context.active_object) > 1

    def draw(self, context: bpy.types.Context) -> None:
        column = self.layout.column(align=True)
        for number, key in enumerate(context.active_object.data.shape_keys.key_blocks[1:], 1):
            column.prop(key, "value", text=text.say("Alternative {number}", number=number), slider=True)


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
        layout.label(text=text.say("Seed {seed}", seed=note.seed))


class MEGA_PT_armature(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_armature"
    bl_label = "Armature"
    bl_parent_id = "MEGA_PT_person"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, _context: bpy.types.Context) -> None:
        self.layout.operator("mega.add_armature", icon="ARMATURE_DATA")


class MEGA_PT_random(SidebarPanel, bpy.types.Panel):
    bl_idname = "MEGA_PT_random"
    bl_label = "Random People"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = split(self.layout), context.scene.mega
        values(layout, settings, "random_count", "seed")
        choice(layout, settings, "random_arrange")
        layout.operator("mega.random", icon="COMMUNITY").keep_locked = False
        person = context.active_object
        if person is not None and person.mega.is_person and properties.locked_parts(person.mega):
            layout.operator("mega.random", icon="LOCKED", text="With Locked Parts").keep_locked = True


CLASSES = (
    MEGA_PT_recover,
    MEGA_PT_sampling,
    MEGA_PT_person,
    MEGA_PT_locks,
    MEGA_PT_blend,
    MEGA_PT_armature,
    MEGA_PT_random,
    MEGA_PT_image,
)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
