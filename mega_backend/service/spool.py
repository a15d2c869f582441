"""Clips on their way in: on disk, bounded, and gone with the work on them, or with the next start of a backend."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from mega_backend import pictures, protocol_motion
from mega_backend.protocol import Message, ProtocolError
from mega_backend.service.limits import Held, Limits, busy

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX, LOCK = "mega-clips-", "lock"
# What a file of each kind begins with, as (offset, bytes). Decoders also know playlists, which name other files; those
# must never reach them.
CONTAINERS = (
    *(((4, box),) for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),  # MP4, QuickTime
    ((0, b"\x1a\x45\xdf\xa3"),),  # Matroska, WebM
    ((0, b"RIFF"), (8, b"AVI ")),
    ((0, b"\x00\x00\x01\xba"),), ((0, b"\x00\x00\x01\xb3"),),  # MPEG
    ((0, b"\x47"), (188, b"\x47")), ((4, b"\x47"), (196, b"\x47")),  # MPEG transport streams
    ((0, b"OggS"),), ((0, b"FLV"),), ((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),), ((0, b"GIF8"),),
)  # fmt: skip


class Shelf:
    """The folders of one backend's clips, inside one that is locked for as long as the process lives."""

    def __init__(self, limits: Limits) -> None:
        self.held = Held(limits.spooled_bytes, "stores too many clips")
        self._home: Path | None = None
        self._lock: int | None = None
        self._making = threading.Lock()

    def folder(self) -> Path:
        """A new folder for one clip. Raises OSError."""
        with self._making:
            # Whoever tidies temporary folders may have taken it.
            if self._home is None or not self._home.is_dir():
                self._unlock()
                self._home = Path(tempfile.mkdtemp(prefix=PREFIX))
                self._lock = _locked(self._home / LOCK, os.O_CREAT)
            return Path(tempfile.mkdtemp(dir=self._home))

    def close(self) -> None:
        """Nothing is kept any more."""
        with self._making:
            if self._home is not None:
                shutil.rmtree(self._home, ignore_errors=True)
            self._unlock()
            self._home = None

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    @staticmethod
    def tidy() -> None:
        """Remove what backends that were killed have left; on Windows, where locks are others, nothing."""
        for home in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            lock = _locked(home / LOCK) if fcntl else None
            if lock is not None:
                shutil.rmtree(home, ignore_errors=True)
                os.close(lock)


def _locked(path: Path, create: int = 0) -> int | None:
    """The descriptor of a file that nobody else holds now; None where somebody does, or it is not there or not ours."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | create, 0o600)
    except OSError:
        if create:
            raise
        return None
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
    return descriptor


@dataclass
class Spool:
    """A clip on its way in: a file, or a folder of pictures, of ours alone. Names come from us, never from a client."""

    limits: Limits
    shelf: Shelf
    folder: Path | None = None
    indices: list[int] | None = None
    """The pictures' numbers, where the clip is a sequence."""
    _bytes: int = 0

    def __post_init__(self) -> None:
        self.lease = self.shelf.held.lease()

    @property
    def source(self) -> Path:
        return self.folder / "pictures" if self.indices is not None else self.folder / "clip"

    def add(self, message: Message) -> None:
        """The next part or picture. Raises ProtocolError, or the 413, 422, 503 that says what is wrong."""
        picture = message.kind == "picture"
        data = protocol_motion.upload_bytes(message, *(("picture", "picture") if picture else ("part", "data")))
        started = self.folder is not None
        if started and picture != (self.indices is not None):
            raise ProtocolError("A clip is sent as 'part' messages or as 'picture' messages, not as both.")
        self.lease.resize(self._bytes + len(data))
        self._bytes += len(data)
        try:
            if not started:
                self.folder = self.shelf.folder()
                if picture:
                    self.indices = []
                    self.source.mkdir()
            if picture:
                self._add_picture(message.fields.get("index"), data)
            else:
                self._add_part(data)
        except OSError as error:
            raise busy(f"The backend cannot store the clip ({error.strerror}); free disk space there.", 60) from error

    def _add_part(self, data: bytes) -> None:
        if not self.source.exists() and not any(
            all(data[at : at + len(mark)] == mark for at, mark in marks) for marks in CONTAINERS
        ):
            raise HTTPException(422, "This is not a video that can be read; convert it to MP4.")
        with open(self.source, "ab") as file:
            file.write(data)

    def _add_picture(self, index: Any, data: bytes) -> None:
        last = self.indices[-1] if self.indices else -1
        if type(index) is not int or not last < index < 10**9:
            raise ProtocolError("Pictures of a sequence have growing whole numbers as 'index'.")
        if len(self.indices) >= self.limits.frames:
            raise HTTPException(422, too_many(self.limits))
        size = pictures.announced_size(data)
        if size is not None and size[0] * size[1] > self.limits.video_pixels:
            raise HTTPException(422, too_large(*size))
        # The reader looks at the contents; the name only has to sort.
        (self.source / f"{len(self.indices):08d}.png").write_bytes(data)
        self.indices.append(index)

    def remove(self) -> None:
        """Delete what was stored."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lease.release()


def too_large(width: int, height: int) -> str:
    return f"The clip's frames are too large ({width} × {height}): make it smaller."


def too_many(limits: Limits) -> str:
    return f"A clip may have at most {limits.frames} frames on this backend; choose a shorter range or a larger step."
