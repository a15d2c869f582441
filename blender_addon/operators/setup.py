"""Set Up Backend, and take it away again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bpy

from .. import environment, mending, session
from ..backend import install
from ..jobs import Job, Progress, board
from ..mending import Trouble
from .job import JobOperator

SET_UP = "Set Up Backend"
"""The title of the job."""


class MEGA_OT_set_up_backend(JobOperator, bpy.types.Operator):
    """Make an environment for the backend and install what it needs: about 1 GB, some minutes"""

    bl_idname = "mega.set_up_backend"
    bl_label = "Set Up Backend"
    bl_options = {"INTERNAL"}

    def make_job(self, _context: bpy.types.Context) -> Job:
        request = environment.request()
        if not request.wheels and not bpy.app.online_access:
            raise Trouble(
                "Blender may not use the network: allow Online Access in the System preferences, "
                "or give a folder of wheels.",
                mending.ONLINE,
            )
        if any(job.title == SET_UP for job in board.jobs):
            raise ValueError("The backend is being set up already.")
        session.backend.stop(wait=False)
        self._python: Path | None = None
        return Job(SET_UP, install.run(request, environment.log()))

    def receive(self, _context: bpy.types.Context, event: Any) -> None:
        self._python = event

    def anything(self) -> bool:
        return self._python is not None

    def summary(self) -> str:
        return "The backend is set up; it starts when needed"


class MEGA_OT_remove_backend(JobOperator, bpy.types.Operator):
    """Remove the backend's environment from this computer"""

    bl_idname = "mega.remove_backend"
    bl_label = "Remove Backend"
    bl_options = {"INTERNAL"}

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_confirm(self, event)

    def make_job(self, _context: bpy.types.Context) -> Job:
        folder, self._removed = environment.folder(), False

        def work(_job: Job) -> Iterator[Any]:
            yield Progress(0.0, "stopping it")
            session.backend.stop()
            yield Progress(0.1, "removing its files")
            install.remove(folder)
            yield folder

        return Job("Remove Backend", work)

    def receive(self, _context: bpy.types.Context, _event: Any) -> None:
        self._removed = True

    def anything(self) -> bool:
        return self._removed

    def summary(self) -> str:
        return "The backend is removed from this computer"


class MEGA_OT_show_log(bpy.types.Operator):
    """Open the log of the last set-up, or of the backend, in Blender's text editor"""

    bl_idname = "mega.show_log"
    bl_label = "Show Log"

    name: bpy.props.EnumProperty(
        name="Log",
        description="Which log to open",
        items=(
            ("backend", "Backend", "What the backend that Blender started says"),
            ("setup", "Set-up", "What the last set-up of the backend did"),
        ),
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        path = environment.log().with_name(f"{self.name}.log")
        if not path.is_file():
            self.report({"WARNING"}, "There is no log yet")
            return {"CANCELLED"}
        bpy.ops.text.open(filepath=str(path), internal=True)
        text = next(text for text in reversed(bpy.data.texts) if text.name.startswith(path.name))
        if context.window is not None:
            bpy.ops.wm.window_new()
            area = context.window_manager.windows[-1].screen.areas[0]
            area.type = "TEXT_EDITOR"
            area.spaces.active.text = text
        return {"FINISHED"}
