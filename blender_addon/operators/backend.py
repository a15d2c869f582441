"""Reaching the backend from the preferences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bpy

from .. import package, session
from ..jobs import Job, Progress, board
from .job import JobOperator


class MEGA_OT_test_backend(JobOperator, bpy.types.Operator):
    """Start or reach the backend and say what answers"""

    bl_idname = "mega.test_backend"
    bl_label = "Test Backend"
    bl_options = {"INTERNAL"}

    def make_job(self, _context: bpy.types.Context) -> Job:
        backend, self._health = session.ready_backend(), None

        def work(job: Job) -> Iterator[Any]:
            yield Progress(0.0, "Connecting")
            yield backend.connect(job.cancelled, job.say).health()

        return Job("Test Backend", work)

    def receive(self, _context: bpy.types.Context, event: dict) -> None:
        self._health = event

    def anything(self) -> bool:
        return self._health is not None

    def summary(self) -> str:
        model = self._health.get("model", {}).get("name", "a model")
        return f"Backend {self._health.get('version')} is ready on {self._health.get('device')} with {model}"


class MEGA_OT_stop_backend(bpy.types.Operator):
    """Stop the backend that Blender started; it starts again when needed"""

    bl_idname = "mega.stop_backend"
    bl_label = "Stop Backend"

    def execute(self, _context: bpy.types.Context) -> set[str]:
        session.close(wait=False)
        return {"FINISHED"}


class MEGA_OT_allow_online(bpy.types.Operator):
    """Let Blender and its extensions use the network, as the System preferences' Allow Online Access does"""

    bl_idname = "mega.allow_online"
    bl_label = "Allow Online Access"

    def execute(self, context: bpy.types.Context) -> set[str]:
        if bpy.app.online_access_override:
            self.report({"ERROR"}, "Blender was started with --offline-mode; start it without to use the network.")
            return {"CANCELLED"}
        context.preferences.system.use_online_access = True
        board.problem = None
        session.redraw()
        return {"FINISHED"}


class MEGA_OT_dismiss(bpy.types.Operator):
    """Close this message"""

    bl_idname = "mega.dismiss"
    bl_label = "Close Message"
    bl_options = {"INTERNAL"}

    def execute(self, _context: bpy.types.Context) -> set[str]:
        board.problem = None
        session.redraw()
        return {"FINISHED"}


class MEGA_OT_preferences(bpy.types.Operator):
    """Open the add-on's preferences"""

    bl_idname = "mega.preferences"
    bl_label = "Backend Preferences"

    def execute(self, _context: bpy.types.Context) -> set[str]:
        board.problem = None
        bpy.ops.preferences.addon_show(module=package.ROOT)
        return {"FINISHED"}
