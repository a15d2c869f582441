"""What has been worked out of a clip so far, on disk, so that a run that was stopped goes on where it was.

A folder with `settings.json` and one .npz for each chunk of frames: what was seen and all hypotheses. Going on replays
the chunks: tracking, choosing and smoothing are quick, and come out as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mega_backend.files import OutputError, atomic_write

SETTINGS = "settings.json"


class Journal:
    """Chunks of named arrays in order.

    Args:
        folder: made where it is missing; chunks that are there already come out of `chunks`.
        settings: JSON-able; those of the folder must be the same.

    Raises:
        OutputError: the folder belongs to a run with other settings, or cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        path = self.folder / SETTINGS
        wanted = json.loads(json.dumps(settings))
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                before = None
            if before != wanted:
                raise OutputError(
                    f"'{self.folder}' is left of a run with other settings: finish that one, or remove the folder"
                )
        else:
            atomic_write(path, lambda stream: stream.write(json.dumps(wanted, indent=2).encode()))
        self._count = 0

    def chunks(self) -> Iterator[dict[str, np.ndarray]]:
        """What is there, up to the first chunk that is missing or damaged; `append` goes on behind it."""
        self._count = 0
        while (path := self._path(self._count)).is_file():
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    chunk = {name: arrays[name] for name in arrays.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                return
            self._count += 1
            yield chunk

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep one chunk more."""
        atomic_write(self._path(self._count), lambda stream: np.savez(stream, **arrays))
        self._count += 1

    def remove(self) -> None:
        """The run is done: forget it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"
