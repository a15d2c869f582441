"""Bounds on what clients may ask for, and the memory that their requests may hold together."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from fastapi import HTTPException


@dataclass(frozen=True)
class Limits:
    """Over a limit: 408, 413, 422 or 503 and a sentence that says what to do; 503 carries Retry-After.

    Attributes:
        body_bytes: of one request.
        pixels: of one picture.
        video_bytes: of one clip, on disk. spooled_bytes: of all clips together.
        video_pixels: of one frame. frames: that one clip may have, within its range and step.
        hypotheses, random, boxes: that one request may ask for.
        active: requests that are worked on at the same time and share the device.
        waiting: requests that wait for their turn.
        connections: open at the same time, whatever they do.
        held_bytes: uploads and decoded pictures of all requests together.
        idle_seconds: that a connection may stay open without a request.
        upload_seconds: for a whole upload. slowest: bytes a second that a clip's must bring on top of that time.
        stall_seconds: that an answer waits for a client that does not read, and a clip for its next part.
    """

    body_bytes: int = 128 << 20
    pixels: int = 100_000_000
    video_bytes: int = 4 << 30
    spooled_bytes: int = 16 << 30
    video_pixels: int = 8192 * 4320
    frames: int = 20_000
    hypotheses: int = 100
    random: int = 256
    boxes: int = 64
    active: int = 8
    waiting: int = 64
    connections: int = 256
    held_bytes: int = 2 << 30
    idle_seconds: float = 15.0
    upload_seconds: float = 120.0
    slowest: int = 32 << 10
    stall_seconds: float = 30.0


def busy(text: str, seconds: int = 5) -> HTTPException:
    """The 503 that says when to come back."""
    return HTTPException(503, text, {"Retry-After": str(seconds)})


class Held:
    """The bytes that requests hold; more than the limit is refused with `text`. Used from several threads."""

    def __init__(self, limit: int, text: str) -> None:
        self.limit, self.text, self.bytes = limit, text, 0
        self._lock = threading.Lock()

    def lease(self) -> Lease:
        """What one request holds; a context manager."""
        return Lease(self)

    def _add(self, count: int) -> bool:
        with self._lock:
            if count > 0 and self.bytes + count > self.limit:
                return False
            self.bytes += count
            return True


class Lease:
    """The bytes of one request, given back at its end."""

    def __init__(self, held: Held) -> None:
        self._held, self._bytes = held, 0

    def resize(self, count: int) -> None:
        """Hold so many bytes from now on. Raises the 503 of `busy`."""
        if not self._held._add(count - self._bytes):
            raise busy(f"The backend {self._held.text} at the moment; try again in a few seconds.")
        self._bytes = count

    def release(self) -> None:
        self._held._add(-self._bytes)
        self._bytes = 0
