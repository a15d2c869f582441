"""Keeps the state of the backend and carries out what its transitions ask for, on threads of its own.

backend.configure(Settings(...))      # from the main thread, whenever preferences change
client = backend.connect(cancelled)   # from a job's thread: starts or reaches the backend, waits, raises BackendError
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from ...mega_backend.client import BackendError, Client
from ...mega_backend.protocol import BodyTopology
from .. import mending
from ..mending import Trouble
from . import state as s
from .process import Process

START_SECONDS = 300.0
"""A first start loads a large library from a cold disk; longer than this is a fault."""
END_SECONDS = 10.0
"""A process that no longer answers has ended by then, or has not ended at all."""


class Backend:
    """One backend, local or remote."""

    def __init__(self, root: Path):
        self.root, self.log = root, Path()
        self._state = s.State()
        self._changed = threading.Condition(threading.RLock())
        self._process: Process | None = None
        self._wait = False
        self._unstartable = False
        self._topology: BodyTopology | None = None
        self.progress_text = ""

    @property
    def state(self) -> s.State:
        return self._state

    def configure(self, settings: s.Settings, log: Path) -> None:
        """Take what the user chose, and where the log of a local backend goes."""
        self.log = log
        self.post(s.Configured(settings))

    def stop(self, wait: bool = True) -> None:
        """Stop a local backend; without `wait` its end, which may take seconds, is seen to by a thread."""
        with self._changed:
            self._wait = wait
            self.post(s.Stopped())
            self._wait = False

    def post(self, event: s.Event) -> None:
        """Apply an event from any thread."""
        with self._changed:
            self._state, effects = s.transition(self._state, event)
            for effect in effects:
                self._carry_out(effect)
            self._changed.notify_all()

    def connect(self, cancelled: threading.Event, say: Callable[[str], None] = lambda _: None) -> Client:
        """A client for a backend that answers; `say` is told meanwhile what it waits for.

        Raises BackendError with a sentence, also when `cancelled` is set.
        """
        with self._changed:
            # It may have died a moment ago, and its end not be known yet.
            while self._state.phase is s.Phase.READY and self._process is not None and not self._process.runs:
                self._changed.wait(0.1)
        self.post(s.Wanted())
        deadline = time.monotonic() + START_SECONDS
        with self._changed:
            while self._state.phase in (s.Phase.STARTING, s.Phase.CONNECTING):
                if cancelled.is_set():
                    raise BackendError("Cancelled.")
                if time.monotonic() > deadline:
                    self.post(s.Stopped())
                    text = f"The backend did not start within {START_SECONDS:.0f} s; see {self.log}."
                    raise Trouble(text, mending.LOG)
                say(self.progress_text)
                self._changed.wait(0.2)
            if self._state.phase is not s.Phase.READY:
                raise self._refusal()
            return Client(self._state.url, self._state.token)

    def _refusal(self) -> Trouble:
        mend = mending.LOG
        if self._state.phase is s.Phase.MISSING:
            mend = mending.SET_UP
        elif self._state.settings.remote or self._unstartable:
            mend = mending.PREFERENCES
        return Trouble(self._state.text or "The backend was stopped.", mend)

    def topology(self, client: Client) -> BodyTopology:
        """The body of this backend, kept while it stays the same."""
        self._topology = client.body(self._topology)
        return self._topology

    def worked(self) -> None:
        """A request was answered to its end."""
        self.post(s.Worked())

    def died(self, client: Client, error: BackendError) -> bool:
        """Whether an error means that the local backend of a client is no more, so that it is worth asking another."""
        process = self._process
        if error.status != 0 or self._state.settings.remote:
            return False
        if process is None or process.token != client.token:
            return True  # another one has taken its place already
        # Its connections end a moment before the process itself, a long one on a busy machine.
        return process.ended_within(END_SECONDS)

    def last_words(self) -> str:
        """Why the local backend stopped for good, once its end is known."""
        with self._changed:
            self._changed.wait_for(lambda: self._state.phase is not s.Phase.READY, timeout=END_SECONDS)
            return self._state.text or "The backend stopped unexpectedly."

    def lost(self, text: str) -> None:
        """A request found nobody: a remote backend counts as failed, a local one is watched anyway."""
        self.post(s.NoAnswer(text))

    def _carry_out(self, effect: s.Effect) -> None:
        match effect:
            case s.StopProcess():
                process, self._process = self._process, None
                if process is not None and self._wait:
                    process.stop()
                elif process is not None:
                    threading.Thread(target=process.stop, name="mega-stop", daemon=True).start()
            case s.StartProcess(settings):
                self._start(settings)
            case s.AskHealth(url, token):
                threading.Thread(target=self._ask, args=(url, token), name="mega-health", daemon=True).start()

    def _start(self, settings: s.Settings) -> None:
        holder: list[Process] = []
        self.progress_text, self._unstartable = "Backend: starting", False

        def on_exit(code: int | None, why: str) -> None:
            with self._changed:
                # A process that was replaced or stopped on purpose has nothing more to say.
                if holder and self._process is holder[0]:
                    self.post(s.ProcessExited(code, why))

        def on_line(line: str) -> None:
            self.progress_text = "Backend: " + line.removeprefix("mega serve:").strip()

        try:
            self._process = Process(
                settings,
                self.root,
                self.log,
                lambda url, token: self.post(s.ProcessReady(url, token)),
                on_exit,
                on_line,
            )
            holder.append(self._process)
        except OSError as error:
            self._unstartable = True
            why = f"{settings.python} cannot be run ({error.strerror}); choose another Python in the preferences"
            self.post(s.ProcessExited(None, why))

    def _ask(self, url: str, token: str) -> None:
        """Ask until the model is loaded; a backend that is given up in the meantime is not asked again."""
        while self._state.phase is s.Phase.CONNECTING and self._state.url == url:
            try:
                health = Client(url, token).health()
            except BackendError as error:
                self.post(s.NoAnswer(str(error)))
                return
            if health.get("status") == "failed":
                self.post(s.NoAnswer(f"The backend could not load its model: {health.get('text', '')}"))
                return
            if health.get("status") != "loading":
                self.post(s.Answered(health))
                return
            self.progress_text = f"Backend: {health.get('text', '')}"
            time.sleep(0.5)
