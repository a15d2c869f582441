"""Writing files so that a crash or a full disk never leaves half a file under the final name."""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

ABANDONED = 60.0
"""Seconds without a change after which nobody is writing a scratch file any more."""
_NAME = 80
"""So many letters of a file's name are in that of its scratch file."""


class OutputError(OSError):
    """A file that cannot be written. The message is one sentence for the user."""


@contextmanager
def replacing(path: str | os.PathLike, suffix: str = "") -> Iterator[str]:
    """A temporary file beside `path` to fill, renamed to `path` at the end; missing folders are made.

    suffix: what the temporary name ends in, for writers that go by it.

    Raises:
        OutputError: the folder or file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OutputError(f"'{path}' is a folder: give the name of a file")
        descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name[:_NAME]}.", suffix=suffix, dir=path.parent)
        os.close(descriptor)
        try:
            yield scratch
            os.chmod(scratch, 0o666 & ~_umask())  # mkstemp lets only their owner read
            os.replace(scratch, path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written: {error.strerror or error}") from error


def atomic_write(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> Path:
    """Let `write` fill a temporary file that then takes the place of `path`. Raises OutputError as `replacing` does."""
    with replacing(path) as scratch, open(scratch, "wb") as stream:
        write(stream)
    return Path(path)


def sweep(folder: str | os.PathLike, ending: str) -> list[Path]:
    """Remove what writers that were killed have left, in a folder and those inside it; returns what was removed.

    That are scratch files of `replacing` for files of this ending (".npz") which nobody has written to for a minute.
    """
    # A long name is cut off before its ending.
    scratch = re.compile(rf"\.(.*{re.escape(ending)}|.{{{_NAME}}})\.[a-z0-9_]{{8}}", re.DOTALL)
    removed = []
    for inside, _, names in os.walk(folder):
        for path in (Path(inside) / name for name in names if scratch.fullmatch(name)):
            # Another one may be sweeping too, or the writer live and finish just now.
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > ABANDONED:
                    path.unlink()
                    removed.append(path)
    return removed


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
