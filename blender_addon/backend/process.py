"""A local backend as a child process: it ends with its parent, however that one ends.

The backend's code is the extension's own, so that its version always fits; the environment's Python brings
what it needs.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from .state import Settings

READY = re.compile(r"^mega serve: ready at (\S+)")
IDLE_SECONDS = 1800
"""An idle backend gives its memory back after this time; it starts again when needed."""


def environment(root: Path) -> dict[str, str]:
    """The variables for a Python that is not Blender's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_PRELOAD"))}
    return {**kept, "PYTHONPATH": str(root), "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip


class Log:
    """A text file of lines. A full disk or a read-only folder ends the log, not what is logged."""

    def __init__(self, path: Path):
        self.problem = ""
        try:
            self._file = open(path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            self._file, self.problem = None, str(error.strerror)

    def write(self, line: str) -> None:
        """Add a line; after the first that cannot be written (see `problem`) nothing more is tried."""
        if self._file is None or self.problem:
            return
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            self.problem = str(error.strerror)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written is in `problem`
                self._file.close()


class Process:
    """One run of `mega serve`. `on_ready(url, token)` and `on_exit(code, why)` are called from its own threads."""

    def __init__(
        self, settings: Settings, root: Path, log: Path, on_ready: Callable[[str, str], None],
        on_exit: Callable[[int | None, str], None], on_line: Callable[[str], None],
    ):  # fmt: skip
        self.token = secrets.token_urlsafe(24)
        self._on_ready, self._on_exit, self._on_line = on_ready, on_exit, on_line
        self._tail: collections.deque[str] = collections.deque(maxlen=30)
        self._log = log
        command = [
            settings.python, "-m", "mega_backend", "serve", "--port", "0", "--stop-with-stdin",
            "--model", settings.model, "--device", settings.device, "--idle-timeout", str(IDLE_SECONDS),
        ]  # fmt: skip
        flags = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=log.parent,
            env={**environment(root), "MEGA_TOKEN": self.token}, text=True, encoding="utf-8", errors="replace",
            creationflags=flags,
        )  # fmt: skip
        threading.Thread(target=self._watch, name="mega-backend", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process, for the operating system."""
        return self._child.pid

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self._child.poll() is None

    def ended_within(self, seconds: float) -> bool:
        """Wait so long at most for its end."""
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, patience: float = 10.0) -> None:
        """End the process: politely by closing its input, then by force."""
        if self._child.stdin and not self._child.stdin.closed:
            try:
                self._child.stdin.close()
            except OSError:
                self._child.kill()
        try:
            self._child.wait(patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _watch(self) -> None:
        with Log(self._log) as log:
            for line in self._child.stdout:
                log.write(line)
                self._tail.append(line.rstrip())
                ready = READY.match(line)
                if ready:
                    self._on_ready(ready.group(1), self.token)
                elif line.strip():
                    self._on_line(line.strip())
        code = self._child.wait()
        why = next((line for line in reversed(self._tail) if line.strip()), "")
        self._on_exit(code, why.removeprefix("mega serve:").strip())
