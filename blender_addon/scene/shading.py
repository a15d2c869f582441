"""What the 3D views colour meshes by: the uncertainty while the scene shows it, else what they did before.

Views belong to the window, not to the scene: undo does not bring their colours back, nor does another scene have its
own. So they follow the scene's setting after each of these.
"""

from __future__ import annotations

import bpy

_before: dict[int, tuple[str, str]] = {}
"""Shading and colours of each 3D view that shows uncertainty, as it was before."""


def follow(scene: bpy.types.Scene) -> None:
    """Let every 3D view that has this scene show what the scene says."""
    for area in _views(scene):
        shading, key = area.spaces.active.shading, area.as_pointer()
        if scene.mega.show_uncertainty and key not in _before:
            _before[key] = (shading.type, shading.color_type)
            shading.type, shading.color_type = "SOLID", "VERTEX"
        elif not scene.mega.show_uncertainty and key in _before:
            shading.type, shading.color_type = _before.pop(key)


def _views(scene: bpy.types.Scene) -> list[bpy.types.Area]:
    windows = [window for window in bpy.context.window_manager.windows if window.scene == scene]
    return [area for window in windows for area in window.screen.areas if area.type == "VIEW_3D"]


@bpy.app.handlers.persistent
def _changed(*_: object) -> None:
    follow(bpy.context.scene)


@bpy.app.handlers.persistent
def _loaded(*_: object) -> None:
    """Another file has other views; those saved while they showed uncertainty are to lose its colours later."""
    _before.clear()
    scene = bpy.context.scene
    for area in _views(scene) if scene.mega.show_uncertainty else ():
        shading = area.spaces.active.shading
        if shading.color_type == "VERTEX":
            _before[area.as_pointer()] = (shading.type, "MATERIAL")
    follow(scene)


HANDLERS = ((bpy.app.handlers.undo_post, _changed), (bpy.app.handlers.redo_post, _changed),
            (bpy.app.handlers.load_post, _loaded))  # fmt: skip


def register() -> None:
    for handlers, handler in HANDLERS:
        handlers.append(handler)


def unregister() -> None:
    for handlers, handler in HANDLERS:
        if handler in handlers:
            handlers.remove(handler)
