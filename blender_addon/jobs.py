"""Work that never blocks the interface: a generator runs on a thread, its events wait until the main thread takes them.

A job does not touch bpy. In the window an operator polls `take` from a timer; in background mode it iterates over
`run` directly: the same work, in order.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..mega_backend.client import BackendError, Stopped, Stream
from . import mending
from .mending import Mend


@dataclass(frozen=True)
class Progress:
    """How far a job is, 0 to 1, and what it is doing."""

    fraction: float
    text: str = ""


@dataclass(frozen=True)
class Failed:
    """Something did not work. `about` names the picture where only that one is concerned and the job goes on."""

    text: str
    about: str = ""
    mend: Mend | None = None


class Job:
    """One piece of work: `work(job)` yields events. Those that are `queued` run one after the other."""

    def __init__(self, title: str, work: Callable[[Job], Iterator[Any]], queued: bool = False):
        self.title, self._work, self.queued = title, work, queued
        self.cancelled = threading.Event()
        self.fraction, self.text, self.started = 0.0, "", time.monotonic()
        self.finished = False
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stream: Stream | None = None
        self.on_cancel: Callable[[], None] | None = None
        """What else has to be stopped, besides a stream."""

    def start(self) -> None:
        """Begin the work, on a thread."""
        threading.Thread(target=self._run_on_thread, name="mega-job", daemon=True).start()

    def cancel(self) -> None:
        """Stop as soon as possible; the backend stops too. What was received already is kept."""
        self.cancelled.set()
        if self._stream is not None:
            self._stream.close()
        if self.on_cancel is not None:
            self.on_cancel()

    def say(self, text: str) -> None:
        """Show what is being done, from the job's thread."""
        self.text = text

    @contextlib.contextmanager
    def streaming(self, stream: Stream) -> Iterator[Stream]:
        """While this lasts, cancelling the job closes the stream."""
        self._stream = stream
        try:
            if self.cancelled.is_set():
                stream.close()
            yield stream
        finally:
            stream.close()
            self._stream = None

    def run(self) -> Iterator[Any]:
        """The events, on the calling thread. A failure of all of it is the last event."""
        try:
            for event in self._work(self):
                self._note(event)
                yield event
                if self.cancelled.is_set():
                    return
        except Stopped:
            return
        except BackendError as error:
            if not self.cancelled.is_set():
                yield Failed(str(error), mend=mending.of(error))

    def take(self, most: int) -> list[Any]:
        """At most so many of the events that have arrived."""
        events = []
        while len(events) < most:
            try:
                events.append(self._events.get_nowait())
            except queue.Empty:
                break
        return events

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.finished and self._events.empty()

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the progress so far; None while there is too little of it, or where the text has one."""
        elapsed = time.monotonic() - self.started
        if not 0.05 < self.fraction < 1 or elapsed < 1 or self.text.endswith("left"):
            return None
        return elapsed * (1 - self.fraction) / self.fraction

    @property
    def status(self) -> str:
        """How far it is, what it does and how long it will take."""
        left = self.seconds_left
        rest = "" if left is None else f", {_duration(left)} left"
        return f"{self.fraction:.0%} {self.text}{rest}"

    def _note(self, event: Any) -> None:
        if isinstance(event, Progress):
            self.fraction, self.text = event.fraction, event.text

    def _run_on_thread(self) -> None:
        try:
            while not self.cancelled.is_set() and (before := board.before(self)):
                self.text = f"waits for {before[0].title}" if len(before) == 1 else f"waits for {len(before)} others"
                time.sleep(0.1)
            self.started = time.monotonic()
            for event in self.run():
                if not isinstance(event, Progress):
                    self._events.put(event)
        except Exception as error:
            # A fault of ours must show in the interface rather than leave a job that never ends.
            self._events.put(Failed(f"{type(error).__name__}: {error}"))
            raise
        finally:
            self.finished = True


def _duration(seconds: float) -> str:
    """As one says it: what is estimated from a few seconds is not known to the second."""
    if seconds < 90:
        return f"{max(5 * round(seconds / 5), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Board:
    """The jobs that run or wait now, and the last thing that went wrong, for the panel to show."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.problem: Failed | None = None

    def add(self, job: Job) -> None:
        """Show a new job; what went wrong before is over."""
        self.jobs.append(job)
        self.problem = None

    def before(self, job: Job) -> list[Job]:
        """Those that a queued job has to wait for; the first of them is worked on now."""
        if not job.queued or job not in self.jobs:
            return []
        return [other for other in self.jobs[: self.jobs.index(job)] if other.queued and not other.finished]

    def remove(self, job: Job) -> None:
        """Show a job no longer, if it is shown."""
        if job in self.jobs:
            self.jobs.remove(job)

    def cancel_all(self) -> None:
        """Cancel every job; each is removed when it has stopped."""
        for job in self.jobs:
            job.cancel()


board = Board()
