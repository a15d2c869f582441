"""Runs inside a real Blender with a window and answers questions of the test outside, through files in $MEGA_DRIVE.

A question `N.ask` is a Python expression; its value goes to `N.answer` as JSON. Questions are only looked at from a
timer, so that an answer shows that the interface is alive.
"""

import json
import os
import time
import traceback
from pathlib import Path

import bpy

FOLDER = Path(os.environ["MEGA_DRIVE"])
PACKAGE = "bl_ext.user_default.mega_mesh_recovery"
INTERVAL = 0.02


def window():
    return bpy.context.window_manager.windows[0]


def view():
    return next(area for area in window().screen.areas if area.type == "VIEW_3D")


def people():
    return sorted((o for o in bpy.context.scene.objects if o.mega.is_person), key=lambda o: o.name)


def keys(person):
    return [key.name for key in person.data.shape_keys.key_blocks]


def jobs():
    import sys

    return [job.text for job in sys.modules[f"{PACKAGE}.blender_addon.jobs"].board.jobs]


def prepare(url, picture, hypotheses):
    """Connect, and show the sidebar's tab."""
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.mode, preferences.url = "REMOTE", url
    settings = bpy.context.scene.mega
    settings.picture, settings.hypotheses = picture, hypotheses
    view().spaces.active.show_region_ui = True
    return True


def show_tab():
    region().active_panel_category = "MEGA"
    view().tag_redraw()
    return True


def region():
    return next(region for region in view().regions if region.type == "UI")


def corner():
    """The upper left corner of the sidebar in pixels from the window's upper left corner."""
    return [region().x, window().height - region().y - region().height]


def middle():
    """A place in the 3D view that is not covered, likewise."""
    area = view()
    return [area.x + area.width // 3, window().height - area.y - area.height // 4]


def over_view():
    """The 3D view as the context of an operator."""
    main = next(region for region in view().regions if region.type == "WINDOW")
    return bpy.context.temp_override(window=window(), area=view(), region=main)


def invoke(operator, **properties):
    """As a button in the 3D view would."""
    with over_view():
        return list(operator("INVOKE_DEFAULT", **properties))


def show_all(collection):
    """Turn the view to the objects of a collection."""
    for each in bpy.context.scene.objects:
        each.select_set(each.name in bpy.data.collections[collection].objects)
    with over_view():
        bpy.ops.view3d.view_axis(type="FRONT")
        bpy.ops.view3d.view_selected()
    return True


def draw():
    """Draw the whole window now: on a busy machine it may be far behind."""
    with over_view():
        bpy.ops.wm.redraw_timer(type="DRAW_WIN_SWAP", iterations=2)
    return True


class Ticks:
    """The longest time between two ticks: how long Blender did not answer."""

    last = time.monotonic()
    longest = 0.0


def longest_gap():
    gap, Ticks.longest = Ticks.longest, 0.0
    return gap


def tick():
    now = time.monotonic()
    Ticks.longest, Ticks.last = max(Ticks.longest, now - Ticks.last), now
    for ask in FOLDER.glob("*.ask"):
        try:
            answer = {"value": eval(ask.read_text(), globals())}
        except Exception:
            answer = {"error": traceback.format_exc()}
        ask.unlink()
        part = ask.with_suffix(".part")
        part.write_text(json.dumps(answer, default=str))
        part.rename(ask.with_suffix(".answer"))
    return INTERVAL


bpy.context.preferences.view.show_splash = False
bpy.context.preferences.view.smooth_view = 0
bpy.app.timers.register(tick, first_interval=1.0, persistent=True)
