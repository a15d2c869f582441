"""Where else the actions are found: menus, and with them the search (F3)."""

from __future__ import annotations

import bpy

from .scene import person


class MEGA_MT_person(bpy.types.Menu):
    bl_idname = "MEGA_MT_person"
    bl_label = "Recovered Person"

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        layout.operator("mega.step", text="Next Alternative", icon="TRIA_RIGHT").step = 1
        layout.operator("mega.step", text="Previous Alternative", icon="TRIA_LEFT").step = -1
        layout.operator("mega.keep", icon="CHECKMARK")
        layout.operator("mega.keyframe", icon="KEY_HLT")
        layout.operator("mega.resample", icon="FILE_REFRESH")
        layout.operator("mega.add_armature", icon="ARMATURE_DATA")
        layout.separator()
        showing = context.scene.mega.show_uncertainty
        text = "Hide Uncertainty" if showing else "Show Uncertainty"
        layout.operator("mega.show_uncertainty", text=text, icon="COLOR").show = not showing


def _import(self: bpy.types.Menu, _context: bpy.types.Context) -> None:
    self.layout.operator("mega.choose_picture", text="People in Pictures (MEGA)").then = "RECOVER"
    self.layout.operator("mega.choose_clip", text="People in a Clip (MEGA)").recover = True


def _add(self: bpy.types.Menu, _context: bpy.types.Context) -> None:
    self.layout.separator()
    self.layout.operator("mega.recover", text="People of a Picture", icon="OUTLINER_OB_ARMATURE")
    self.layout.operator("mega.recover_clip", text="People of a Clip", icon="TRACKER")
    self.layout.operator("mega.find_people", icon="VIEWZOOM")
    self.layout.operator("mega.random", icon="COMMUNITY")


def _object(self: bpy.types.Menu, context: bpy.types.Context) -> None:
    if person.people([each for each in (context.active_object,) if each is not None]):
        self.layout.separator()
        self.layout.menu(MEGA_MT_person.bl_idname, icon="OUTLINER_OB_ARMATURE")


ADDED = (
    (bpy.types.TOPBAR_MT_file_import, _import),
    (bpy.types.VIEW3D_MT_add, _add),
    (bpy.types.VIEW3D_MT_object, _object),
    (bpy.types.VIEW3D_MT_object_context_menu, _object),
)


def register() -> None:
    bpy.utils.register_class(MEGA_MT_person)
    for menu, draw in ADDED:
        menu.append(draw)


def unregister() -> None:
    for menu, draw in reversed(ADDED):
        menu.remove(draw)
    bpy.utils.unregister_class(MEGA_MT_person)
