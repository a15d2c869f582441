"""Writing files so that a crash or a full disk never leaves half a file under the final name."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
        descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=suffix, dir=path.parent)
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


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
