"""Runs inside a real Blender with a window and answers questions of the test outside, through files in $MEGA_DRIVE.

A question `N.ask` is a Python expression; its value goes to `N.answer` as JSON. Questions are only looked at from a
timer, so that an answer shows that the interface is alive.
"""

import json
import os
import time
import traceback
from pathlib import Path
from typing import ClassVar

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


def install(archive):
    """As dropping the zip onto the window does, once the drop is confirmed."""
    bpy.ops.extensions.package_install_files(filepath=archive, repo="user_default", enable_on_install=True)
    return PACKAGE in bpy.context.preferences.addons


def module(name):
    import sys

    return sys.modules[f"{PACKAGE}.blender_addon.{name}"]


def backend():
    """The state of the connection, as the panel says it."""
    return module("session").backend.state.phase.value


def spot(number, across=0.5, down=0.5):
    """A place in a found person's box over the 3D view, in pixels from the window's upper left corner."""
    x0, y0, x1, y1 = bpy.context.scene.mega.found[number].box
    return on_picture(x0 + across * (x1 - x0), y0 + down * (y1 - y0))


def on_picture(x, y):
    main = next(region for region in view().regions if region.type == "WINDOW")
    mapping = module("chooser").Mapping(view(), tuple(bpy.context.scene.mega.found_size))
    left, bottom = mapping.to_region(x, y)
    return [main.x + left, window().height - main.y - bottom]


def chosen():
    return [person.chosen for person in bpy.context.scene.mega.found]


class Ours:
    """The longest that each of our own functions kept the main thread, in seconds.

    `longest` is its processor's time, which does not depend on what else the machine does; `clock` is what passed.
    An operator's timer is counted without the result that it puts into the scene, which is counted by itself.
    """

    longest: ClassVar[dict[str, float]] = {}
    clock: ClassVar[dict[str, float]] = {}
    inside: ClassVar[list[tuple[float, float]]] = []

    @classmethod
    def watch(cls, owner, name, label):
        function = getattr(owner, name)

        def timed(*arguments, **named):
            if label == "operator":
                cls.inside.clear()
            processor, clock = time.thread_time(), time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent = time.thread_time() - processor, time.perf_counter() - clock
                if label == "import":
                    cls.inside.append(spent)
                elif label == "operator":
                    spent = tuple(spent[i] - sum(part[i] for part in cls.inside) for i in (0, 1))
                cls.longest[label] = max(cls.longest.get(label, 0.0), spent[0])
                cls.clock[label] = max(cls.clock.get(label, 0.0), spent[1])

        # Blender passes as many arguments as a function's code names.
        count = function.__code__.co_argcount
        exact = (lambda: timed(), lambda a: timed(a), lambda a, b: timed(a, b), lambda a, b, c: timed(a, b, c))[count]
        setattr(owner, name, exact)
        return exact


def watch_ours():
    """Measure every call of ours on the main thread: operators' timers, results put into the scene, panels, status."""
    Ours.watch(module("operators.job").JobOperator, "modal", "operator")
    Ours.watch(module("scene.recovery").Importer, "receive", "import")
    for name in dir(module("panels")):
        if name.startswith("MEGA_PT_"):
            Ours.watch(getattr(module("panels"), name), "draw", "panels")
    Ours.watch(module("scene.clip").ClipImporter, "add", "import")
    session = module("session")
    bpy.app.timers.unregister(session._tick)
    bpy.app.timers.register(Ours.watch(session, "_tick", "status"), persistent=True)
    return True


def longest_calls():
    found, Ours.longest = Ours.longest, {}
    return found


def show_preferences(show=True):
    """Open the add-on's preferences in their own window, or close it."""
    if show:
        return list(bpy.ops.mega.preferences())
    while len(bpy.context.window_manager.windows) > 1:
        with bpy.context.temp_override(window=bpy.context.window_manager.windows[-1]):
            bpy.ops.wm.window_close()
    return True


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
