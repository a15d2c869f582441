"""The Blender add-on: people in photographs become meshes. Needs Blender and its NumPy, nothing else."""

from __future__ import annotations

from . import command_line, legend, operators, panels, preferences, properties, session

MODULES = (preferences, properties, operators, panels, session, legend, command_line)


def register() -> None:
    for module in MODULES:
        module.register()


def unregister() -> None:
    for module in reversed(MODULES):
        module.unregister()
