"""What the panels and the preferences show of work and backend: jobs, what went wrong and what mends it, the state."""

from __future__ import annotations

import bpy

from . import session, text
from .backend.state import Phase
from .jobs import board


def draw(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Jobs, then what went wrong and how the backend is."""
    _draw_jobs(layout, context)
    _draw_state(layout, context)


def _draw_jobs(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """What is worked on and what waits, each with a button that stops it."""
    for index, job in enumerate(board.jobs):
        column = layout.column(align=True)
        row = column.row(align=True)
        row.progress(factor=job.fraction, type="BAR", text=job.title)
        row.operator("mega.cancel", text="", icon="X").index = index
        text.draw(column, context, job.status, "SORTTIME")


def _draw_state(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """What went wrong, with what mends it; and how the backend is."""
    problem = board.problem
    if problem is not None:
        box = layout.box()
        row = box.row(align=True)
        text.draw(row, context, problem.text, "ERROR", margin=30)
        row.operator("mega.dismiss", text="", icon="X", emboss=False)
        if problem.mend is not None:
            mend = problem.mend
            button = box.operator(mend.operator, text=text.say(mend.label), icon=mend.icon)
            for name, value in mend.values:
                setattr(button, name, value)
    state, icon = session.status()
    if problem is None or problem.text != state:
        text.draw(layout, context, state, icon)
    if problem is None and session.is_missing() and context.area.type != "PREFERENCES":
        layout.operator("mega.preferences", icon="PREFERENCES")
    elif problem is None and session.backend.state.phase is Phase.FAILED:
        row = layout.row(align=True)
        row.operator("mega.test_backend", text="Try Again", icon="FILE_REFRESH")
        row.operator("mega.preferences", text="", icon="PREFERENCES")
