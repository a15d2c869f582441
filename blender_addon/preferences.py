"""The add-on's preferences: which backend."""

from __future__ import annotations

import bpy
from bpy.props import EnumProperty, StringProperty

from . import package, session


class MegaPreferences(bpy.types.AddonPreferences):
    """Where the work is done."""

    bl_idname = package.ROOT

    mode: EnumProperty(
        name="Backend",
        items=(
            ("LOCAL", "On This Computer", "A backend that Blender starts when needed and stops with itself"),
            ("REMOTE", "Connect", "A backend that runs already, here or on another machine"),
        ),
    )
    url: StringProperty(name="URL", description="Address of the backend", default="http://127.0.0.1:8765")
    token: StringProperty(name="Token", description="What the backend was started with", subtype="PASSWORD")
    python: StringProperty(
        name="Python",
        description="A Python 3.11 or 3.12 that has the backend's packages; empty for the add-on's own environment",
        subtype="FILE_PATH",
    )
    device: EnumProperty(
        name="Device",
        items=(
            ("cpu", "CPU", "Works everywhere"),
            ("cuda", "CUDA", "An NVIDIA GPU, or an AMD one with ROCm"),
            ("mps", "Metal", "An Apple GPU"),
        ),
    )
    model: StringProperty(
        name="Model", description="Folder of an imported model; empty for the one that comes along", subtype="DIR_PATH"
    )

    def draw(self, _context: bpy.types.Context) -> None:
        layout = self.layout
        layout.use_property_split = True
        layout.row().prop(self, "mode", expand=True)
        if self.mode == "REMOTE":
            layout.prop(self, "url")
            layout.prop(self, "token")
        else:
            layout.prop(self, "python")
            layout.prop(self, "device")
            layout.prop(self, "model")
        text, icon = session.status()
        layout.label(text=text, icon=icon)
        row = layout.row()
        row.operator("mega.test_backend")
        row.operator("mega.stop_backend")


def register() -> None:
    bpy.utils.register_class(MegaPreferences)


def unregister() -> None:
    bpy.utils.unregister_class(MegaPreferences)
