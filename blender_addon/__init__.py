"""The Blender add-on: people in photographs become meshes. Needs Blender and its NumPy, nothing else."""

from __future__ import annotations

import bpy  # noqa: F401  (blf and gpu are there only after it)

from . import (
    chooser,
    clip_properties,
    command_line,
    legend,
    menus,
    operators,
    panels,
    panels_clip,
    preferences,
    properties,
    session,
)
from .scene import shading

MODULES = (
    preferences, properties, clip_properties, operators, panels, panels_clip, menus, session, legend, chooser,
    shading, command_line,
)  # fmt: skip


def register() -> None:
    for module in MODULES:
        module.register()


def unregister() -> None:
    for module in reversed(MODULES):
        module.unregister()
