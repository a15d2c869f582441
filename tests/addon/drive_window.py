"""Runs inside a real Blender with a window: prepares it, says where the button is, and reports what the scene has.

Talks to the test through files in $MEGA_DRIVE: `settings.json` in; `button.json`, then `scene.json` out.
"""

import json
import os
import time
from pathlib import Path

import bpy

FOLDER = Path(os.environ["MEGA_DRIVE"])
SETTINGS = json.loads((FOLDER / "settings.json").read_text())
PACKAGE = "bl_ext.user_default.mega_mesh_recovery"
BUTTON = (136, 130)
"""From the upper left corner of the sidebar to the button Recover Mesh, in pixels at the default scale."""


def write(name, value):
    part = FOLDER / f"{name}.part"
    part.write_text(json.dumps(value))
    part.rename(FOLDER / name)


def prepare():
    bpy.context.preferences.view.show_splash = False
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.mode, preferences.url = "REMOTE", SETTINGS["url"]
    settings = bpy.context.scene.mega
    settings.picture, settings.hypotheses = SETTINGS["picture"], SETTINGS["hypotheses"]


def sidebar():
    window = bpy.context.window_manager.windows[0]
    area = next(area for area in window.screen.areas if area.type == "VIEW_3D")
    area.spaces.active.show_region_ui = True
    region = next(region for region in area.regions if region.type == "UI")
    return window, region


def facts():
    scene = bpy.context.scene
    people = [o for o in scene.objects if o.type == "MESH" and o.mega.is_person]
    return {
        "people": [
            {
                "name": person.name,
                "keys": [key.name for key in person.data.shape_keys.key_blocks],
                "vertices": len(person.data.vertices),
                "collection": person.users_collection[0].name,
            }
            for person in people
        ],
        "camera": scene.camera.name,
        "resolution": [scene.render.resolution_x, scene.render.resolution_y],
        "background": [image.image.name for image in scene.camera.data.background_images],
        "view": next(
            a for a in bpy.context.window_manager.windows[0].screen.areas if a.type == "VIEW_3D"
        ).spaces.active.region_3d.view_perspective,
        "longest_gap": drive.longest,
    }


class Drive:
    """A timer that goes through the stages; the longest time between two ticks shows how long Blender was busy."""

    def __init__(self):
        self.drawn = 0
        self.waiting = False
        self.settled = 0
        self.last = self.longest = 0.0

    def __call__(self):
        window, region = sidebar()
        if not self.waiting:
            self.drawn += 1
            if self.drawn < 6:
                return 0.3
            region.active_panel_category = "MEGA"
            region.tag_redraw()
            if self.drawn < 10:
                return 0.3
            x, y = region.x + BUTTON[0], region.y + region.height - BUTTON[1]
            write("button.json", [x, window.height - y])
            self.waiting, self.last = True, time.monotonic()
            return 0.05
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now
        people = [o for o in bpy.context.scene.objects if o.type == "MESH" and o.mega.is_person]
        self.settled = self.settled + 1 if len(people) >= SETTINGS["people"] else 0
        if self.settled > 40:
            write("scene.json", facts())
            return None
        return 0.05


prepare()
drive = Drive()
bpy.app.timers.register(drive, first_interval=0.5)
