"""Sentences in panels: translated, and broken into lines, because Blender cuts what does not fit into one."""

from __future__ import annotations

import textwrap

import bpy

PIXELS_PER_CHARACTER = 6.5
"""Of the interface's font at a scale of 1, on average."""


def say(message: str, **values: object) -> str:
    """A sentence in the user's language, where a translation knows it; values are put in afterwards."""
    return bpy.app.translations.pgettext_iface(message).format(**values)


def draw(
    layout: bpy.types.UILayout, context: bpy.types.Context, text: str, icon: str = "NONE", margin: int = 0
) -> None:
    """A label of as many lines as the region's width, less a margin, needs."""
    width = context.region.width / context.preferences.system.ui_scale if context.region else 300
    lines = textwrap.wrap(text, max(20, int((width - 60 - margin) / PIXELS_PER_CHARACTER)))
    column = layout.column(align=True)
    for number, line in enumerate(lines):
        column.label(text=line, icon=icon if number == 0 else "BLANK1")
