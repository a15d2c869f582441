"""The legend of the uncertainty colours, drawn into the 3D views that show them."""

from __future__ import annotations

import blf
import bpy
import gpu
from gpu_extras.batch import batch_for_shader

from . import text
from .scene import uncertainty

WIDTH, HEIGHT, MARGIN = 160, 12, 24
"""Pixels at a UI scale of 1."""
_handle: object | None = None


def _draw() -> None:
    context = bpy.context
    if not context.scene.mega.show_uncertainty or not context.space_data.overlay.show_overlays:
        return
    scale = context.preferences.system.ui_scale
    left, bottom = (60 + MARGIN) * scale, (40 + MARGIN) * scale
    width, height = WIDTH * scale, HEIGHT * scale
    steps = len(uncertainty.COLOURS)
    points, colours = [], []
    for step, colour in enumerate(uncertainty.COLOURS):
        x = left + width * step / (steps - 1)
        points += [(x, bottom), (x, bottom + height)]
        shown = [float(channel) for channel in colour]
        colours += [(*shown, 1.0)] * 2
    shader = gpu.shader.from_builtin("SMOOTH_COLOR")
    batch_for_shader(shader, "TRI_STRIP", {"pos": points, "color": colours}).draw(shader)
    blf.size(0, 11 * scale)
    blf.color(0, 1, 1, 1, 1)
    blf.enable(0, blf.SHADOW)
    blf.shadow(0, 3, 0, 0, 0, 0.8)
    end = uncertainty.SCALE * 100
    row = 5 * scale
    words = (
        (text.say("How far the alternatives lie apart"), left, bottom + height + row + 15 * scale),
        ("0 cm", left, bottom + height + row),
        (text.say("{end:.0f} cm and more", end=end), left + width - 20 * scale, bottom + height + row),
    )
    for word, x, y in words:
        blf.position(0, x, y, 0)
        blf.draw(0, word)
    blf.disable(0, blf.SHADOW)


def register() -> None:
    global _handle
    if not bpy.app.background:
        _handle = bpy.types.SpaceView3D.draw_handler_add(_draw, (), "WINDOW", "POST_PIXEL")


def unregister() -> None:
    global _handle
    if _handle is not None:
        bpy.types.SpaceView3D.draw_handler_remove(_handle, "WINDOW")
        _handle = None
