"""The add-on's preferences: which backend."""

from __future__ import annotations

import bpy
from bpy.props import EnumProperty, StringProperty

from . import environment, package, status
from .jobs import board
from .layouts import choice, main_button, values
from .operators.setup import SET_UP


class MegaPreferences(bpy.types.AddonPreferences):
    """Where the work is done."""

    bl_idname = package.ROOT

    mode: EnumProperty(
        name="Backend",
        description="Where the work is done",
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
    base_python: StringProperty(
        name="Base Python",
        description="A Python 3.11 or 3.12 for the environment to build on; empty to find or fetch one",
        subtype="FILE_PATH",
    )
    wheels: StringProperty(
        name="Wheels",
        description="A folder of wheels to install from without network; empty for the package registry",
        subtype="DIR_PATH",
    )
    device: EnumProperty(
        name="Device",
        description="What the backend computes on",
        items=(
            ("cpu", "CPU", "Works everywhere"),
            ("cuda", "CUDA", "An NVIDIA GPU, or an AMD one with ROCm"),
            ("mps", "Metal", "An Apple GPU"),
        ),
    )
    model: StringProperty(
        name="Model", description="Folder of an imported model; empty for the one that comes along", subtype="DIR_PATH"
    )

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        layout.use_property_split = True
        choice(layout, self, "mode")
        if self.mode == "REMOTE":
            values(layout, self, "url", "token")
        else:
            self._draw_setup(layout)
            values(layout, self, "device", "model")
        status.draw(layout, context)
        row = layout.row()
        row.operator("mega.test_backend")
        if self.mode == "LOCAL":
            row.operator("mega.stop_backend")
            row.operator("mega.show_log", text="Log", icon="TEXT").name = "backend"

    def _draw_setup(self, layout: bpy.types.UILayout) -> None:
        if any(job.title == SET_UP for job in board.jobs):
            layout.label(text="The backend is being set up; you can work on meanwhile", icon="SORTTIME")
        elif environment.python() is not None:
            row = layout.row()
            row.label(text="The backend is set up", icon="CHECKMARK")
            row.operator("mega.remove_backend", icon="TRASH")
        else:
            main_button(layout, "mega.set_up_backend", icon="IMPORT")
            values(layout, self, "base_python", "wheels")
        row = layout.row()
        row.prop(self, "python", text="Or Use Python")
        row.operator("mega.show_log", text="", icon="TEXT").name = "setup"


def register() -> None:
    bpy.utils.register_class(MegaPreferences)


def unregister() -> None:
    bpy.utils.unregister_class(MegaPreferences)
