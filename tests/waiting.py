"""Waits with a deadline: what hangs must fail its own test, not hold up all others."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def until(what: Callable[[], T], seconds: float = 90.0, pause: float = 0.01) -> T:
    """What it gives, once it gives anything true."""
    end = time.monotonic() + seconds
    while not (given := what()):
        assert time.monotonic() < end, f"still waiting after {seconds:.0f} s for {what}"
        time.sleep(pause)
    return given


@contextmanager
def program(command: Sequence[str], seconds: float = 120.0, **options: Any) -> Iterator[subprocess.Popen]:
    """A process whose standard output is read; killed at the end of the `with`, and after so many seconds.

    What waits for it or for its words therefore ends by then, with nothing to read.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    deadline = threading.Timer(seconds, process.kill)
    deadline.daemon = True
    deadline.start()
    try:
        yield process
    finally:
        deadline.cancel()
        process.kill()
        process.wait(30)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was still to be written to it
                    pipe.close()


def line_with(text: str, process: subprocess.Popen) -> str:
    """The next line of a `program` that holds `text`; those before it are passed over."""
    for line in iter(process.stdout.readline, ""):
        if text in line:
            return line
    raise AssertionError(f"the program ended, or did not say {text!r} in time")
