"""An operator that runs a job: modal in the window, synchronous in background mode; the same code either way.

A subclass builds the job and takes its events. It finishes as one undo step; Esc stops it and keeps what has arrived.
"""

from __future__ import annotations

import time
import traceback
from typing import Any

import bpy

from ...mega_backend.client import BackendError
from .. import mending, session
from ..jobs import Failed, Job, Progress, board

INTERVAL = 0.05
"""Seconds between two looks at what has arrived, so that drawing goes on in between."""
SLICE = 0.02
"""Seconds of the processor that one look may take, beyond what its last event or step needs."""


def call(operator: bpy.types.Operator, other: Any, *how: str, **values: Any) -> set[str]:
    """Run another operator; its error is this one's report, not an exception."""
    try:
        return other(*how, **values)
    except RuntimeError as error:
        operator.report({"ERROR"}, str(error).removeprefix("Error: ").strip())
        return {"CANCELLED"}


class JobOperator:
    """Mix in before bpy.types.Operator."""

    bl_options = {"UNDO"}

    def make_job(self, context: bpy.types.Context) -> Job:
        """The job. Raises BackendError or ValueError with a sentence where it cannot begin."""
        raise NotImplementedError

    def receive(self, context: bpy.types.Context, event: Any) -> None:
        """Take one event on the main thread."""
        raise NotImplementedError

    def anything(self) -> bool:
        """Whether there is a result: an operator without one leaves no undo step."""
        raise NotImplementedError

    def summary(self) -> str:
        """What to report at the end."""
        raise NotImplementedError

    def ended(self) -> None:
        """The job is over, whatever came of it."""
        return

    def finish(self, _context: bpy.types.Context) -> None:
        """What follows a result in the window."""
        return

    def go_on(self, context: bpy.types.Context) -> bool:
        """Do a little of what is left once all events are taken; False when nothing is."""
        return False

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            self._job = self.make_job(context)
        except (BackendError, ValueError) as error:
            self.report({"ERROR"}, str(error))
            board.problem = Failed(str(error), mend=mending.of(error))
            session.redraw()
            return {"CANCELLED"}
        self._problems: list[str] = []
        if bpy.app.background:
            return self._in_background(context)
        board.add(self._job)
        self._job.start()
        self._timer = context.window_manager.event_timer_add(INTERVAL, window=context.window)
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if event.type == "ESC" and event.value == "PRESS":
            self._job.cancel()
            return {"RUNNING_MODAL"}
        if event.type != "TIMER":
            return {"PASS_THROUGH"}
        busy = not self._job.done
        try:
            deadline = time.thread_time() + SLICE
            while time.thread_time() < deadline and (arrived := self._job.take(1)):
                self._take(context, *arrived)
            while not busy and time.thread_time() < deadline:
                if not self.go_on(context):
                    break
            else:
                busy = True
        except Exception as error:
            # A fault here must not leave a job that never ends; what it was goes to the console too.
            traceback.print_exc()
            self._job.cancel()
            self._clean_up(context)
            self.report({"ERROR"}, f"{self._job.title}: {type(error).__name__}: {error}")
            return {"CANCELLED"}
        self._status(context)
        if busy:
            return {"PASS_THROUGH"}
        self._clean_up(context)
        result = self._end(cancelled=self._job.cancelled.is_set())
        if result == {"FINISHED"} and not self._job.cancelled.is_set():
            self.finish(context)
        return result

    def _clean_up(self, context: bpy.types.Context) -> None:
        context.window_manager.event_timer_remove(self._timer)
        board.remove(self._job)
        self.ended()
        session.redraw()
        context.workspace.status_text_set(None)

    def cancel(self, _context: bpy.types.Context) -> None:
        """Blender ends the operator itself: its window closes, another file is opened."""
        self._job.cancel()
        board.remove(self._job)
        self.ended()

    def _in_background(self, context: bpy.types.Context) -> set[str]:
        shown = None
        for event in self._job.run():
            if isinstance(event, Progress):
                line = f"mega: {event.fraction:4.0%} {event.text}"
                if line != shown:
                    print(line, flush=True)
                shown = line
            else:
                self._take(context, event)
        while self.go_on(context):
            continue
        self.ended()
        return self._end(cancelled=False)

    def _take(self, context: bpy.types.Context, event: Any) -> None:
        if isinstance(event, Failed):
            self.problem(event.text, event.mend)
        else:
            self.receive(context, event)

    def problem(self, text: str, mend: mending.Mend | None = None) -> None:
        """Something did not work; the job goes on. The panel keeps it, with a button that mends it."""
        self._problems.append(text)
        more = f" ({len(self._problems)} problems so far; the Info editor lists them.)" if self._problems[1:] else ""
        board.problem = Failed(text + more, mend=mend)
        # A report of an error ends the operator where a script called it, so that it waits for the end there.
        if not bpy.app.background:
            self.report({"ERROR"}, text)

    def _status(self, context: bpy.types.Context) -> None:
        if board.jobs[0] is self._job:
            waiting = f", {len(board.jobs) - 1} more waiting" if len(board.jobs) > 1 else ""
            context.workspace.status_text_set(f"{self._job.title}: {self._job.status}{waiting}  (Esc stops)")

    def _end(self, cancelled: bool) -> set[str]:
        nothing = not self.anything()
        if self._problems and bpy.app.background:
            self.report({"ERROR"} if nothing else {"WARNING"}, " ".join(self._problems))
        if nothing:
            if cancelled:
                self.report({"INFO"}, "Stopped")
            elif not self._problems:
                self.report({"WARNING"}, self.summary())
            return {"CANCELLED"}
        self.report({"INFO"}, ("Stopped: " if cancelled else "") + self.summary())
        return {"FINISHED"}
