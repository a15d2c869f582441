"""The Blender add-on: people in photographs become meshes. Needs Blender and its NumPy, nothing else."""

from __future__ import annotations

import bpy  # noqa: F401  (blf and gpu are there only after it)

from . import chooser, command_line, legend, menus, operators, panels, preferences, properties, session

MODULES = (preferences, properties, operators, panels, menus, session, legend, chooser, command_line)


def register() -> None:
    for module in MODULES:
        module.register()


def unregister() -> None:
    for module in reversed(MODULES):
        module.unregister()
