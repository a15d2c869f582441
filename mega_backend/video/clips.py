"""Clips as a stream of frames: video files and image sequences, a frame in memory at a time."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mega_backend import pictures
from mega_backend.pictures import PictureError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
PATIENCE = 30
"""So many frames in a row may be unreadable before a video counts as over."""
SEQUENCE_RATE = 25.0
"""Frames a second of image sequences, unless the caller knows better."""


class ClipError(PictureError):
    """A clip that cannot be used. The message is one sentence for the user."""


@dataclass(frozen=True)
class Frame:
    """One frame: its number in the clip, its time in seconds, and (H, W, 3) uint8 RGB, None where it is unreadable."""

    index: int
    time: float
    picture: np.ndarray | None


class Clip:
    """A range of a clip's frames. Iterate as often as needed; every pass opens the clip anew.

    Args:
        source: a video file, a folder of pictures, or a pattern such as `frame_%04d.png` or `shots/*.jpg`.
        start, stop, step: as of a slice over the frames; stop None takes all.
        rate: frames a second of an image sequence, or to believe instead of what the video says.

    Attributes:
        size: width, height, upright. rate: frames a second of the clip itself, before `step`.
        count: how many frames a pass gives, as far as the file says; None where it does not.
        problems: sentences about frames of the last pass that could not be read.

    Raises:
        ClipError: no such clip, or not one frame of it can be read.
        ValueError: an empty or backward range.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        start: int = 0,
        stop: int | None = None,
        step: int = 1,
        rate: float | None = None,
    ) -> None:
        if start < 0 or step < 1 or (stop is not None and stop <= start):
            raise ValueError("give a range of frames with 0 ≤ start < stop and a step of 1 or more")
        if rate is not None and not (np.isfinite(rate) and rate > 0):
            raise ValueError(f"the frame rate must be a positive number, not {rate}")
        self.source, self.start, self.stop, self.step = str(source), start, stop, step
        self.size: tuple[int, int] | None = None
        self.problems: list[str] = []
        self._files = _sequence(self.source)
        self._given_rate = rate
        total = None
        if self._files is None:
            capture = self._open()
            told = capture.get(cv2.CAP_PROP_FPS)
            self.rate = rate or (told if np.isfinite(told) and 0.5 <= told <= 1000 else SEQUENCE_RATE)
            total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            total = total if 0 < total < 10**8 else None
            capture.release()
        else:
            self.rate = rate or SEQUENCE_RATE
            total = len(self._files)
        end = total if stop is None else stop if total is None else min(stop, total)
        self.count = None if end is None else max(0, -(-(end - start) // step))
        if self.count == 0:
            raise ClipError(f"'{self.source}' has only {total} frames: start before frame {total}")
        first = next((frame for frame in self if frame.picture is not None), None)
        if first is None:
            raise ClipError(f"no frame of '{self.source}' can be read: convert it to MP4 and try again")
        height, width = first.picture.shape[:2]
        self.size = (width, height)

    def __iter__(self) -> Iterator[Frame]:
        self.problems = []
        yield from self.behind(-1)

    def behind(self, last: int) -> Iterator[Frame]:
        """The frames behind the one with number `last`; nothing up to there is decoded that need not be."""
        frames = self._decoded(last) if self._files is None else self._read(last)
        for frame in frames:
            if self.stop is not None and frame.index >= self.stop:
                return
            if self._wanted(frame.index, last):
                if frame.picture is None:
                    self.bridge(frame.index)
                yield frame

    def bridge(self, index: int) -> None:
        """Note among the problems that a frame could not be read."""
        self.problems.append(f"frame {index} could not be read and is bridged")

    def _wanted(self, index: int, last: int) -> bool:
        return index > last and index >= self.start and (index - self.start) % self.step == 0

    def _open(self) -> cv2.VideoCapture:
        path = Path(self.source)
        if not path.is_file():
            raise ClipError(f"there is no clip '{path}': check its name")
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise ClipError(f"'{path}' is not a video that can be read: convert it to MP4")
        # Phones store upright clips lying down, with a flag.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        return capture

    def _decoded(self, behind: int) -> Iterator[Frame]:
        capture = self._open()
        try:
            index, missing, last = 0, 0, -np.inf
            while self.stop is None or index < self.stop:
                wanted = self._wanted(index, behind)
                # The time must be asked for after a grab: that of the frame that was grabbed.
                good, picture = capture.read() if wanted else (capture.grab(), None)
                if not good:
                    missing += 1
                    if missing > PATIENCE:
                        return
                    index += 1
                    continue
                time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                # Without time stamps, or with damaged ones, frames are evenly spaced.
                if self._given_rate or not np.isfinite(time) or (index > 0 and time <= last) or time < 0:
                    time = max(index / self.rate, last + 0.5 / self.rate)
                for gone in range(missing, 0, -1):
                    yield Frame(index - gone, time - gone / self.rate, None)
                missing, last = 0, time
                yield Frame(index, time, None if picture is None else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
                index += 1
        finally:
            capture.release()

    def _read(self, behind: int) -> Iterator[Frame]:
        size = self.size
        for index, path in enumerate(self._files):
            wanted = self._wanted(index, behind)
            picture = None
            if wanted:
                try:
                    picture = pictures.read(path)
                except PictureError:
                    picture = None
                if picture is not None:
                    size = size or (picture.shape[1], picture.shape[0])
                    picture = picture if (picture.shape[1], picture.shape[0]) == size else None
            yield Frame(index, index / self.rate, picture)


def _sequence(source: str) -> list[Path] | None:
    """The pictures of an image sequence in order, or None for a video file."""
    if Path(source).is_dir():
        files = [path for path in Path(source).iterdir() if path.suffix.lower() in PICTURES]
        kind = f"the folder '{source}'"
    elif re.search(r"%0?\d*d", source):
        pattern = glob.escape(source)
        files = [Path(name) for name in glob.glob(re.sub(r"%0?\d*d", "*", pattern))]
        number = re.compile(re.sub(r"%0?\\?\d*d", r"\\d+", re.escape(source)))
        files = [path for path in files if number.fullmatch(str(path))]
        kind = f"the pattern '{source}'"
    elif glob.has_magic(source) and not Path(source).exists():
        files = [Path(name) for name in glob.glob(source)]
        kind = f"the pattern '{source}'"
    else:
        return None
    if not files:
        raise ClipError(f"{kind} holds no pictures: name one with {', '.join(PICTURES[:3])}… files")
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorts frame_10 after frame_9."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name)]
