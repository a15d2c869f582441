"""A clip to motion: watch, track, choose, smooth. `Recoverer.recover_video` is this."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from mega_backend.recovery import Progress, Recoverer

from .clips import Clip, Frame
from .motion import FrameResult, MotionOptions, MotionSolver
from .tracking import Tracker
from .watch import Watcher

SEARCH_EVERY = 0.5
"""Seconds between searches of the whole picture."""
LONGEST_CHUNK = 16
"""Frames in memory at once."""


def recover_video(
    recoverer: Recoverer,
    clip: Clip | str | os.PathLike,
    options: MotionOptions | None = None,
    focal_length: float | None = None,
    smallest: float = 0.4,
    progress: Progress | None = None,
) -> Iterator[FrameResult]:
    """The people of each frame of a clip, in order, about two and a half seconds behind what has been looked at.

    Args:
        clip: a `Clip`, or what makes one. options: how motion is made.
        focal_length: in pixels, of the whole clip; by default that of `camera.default_focal_length`.
        smallest: leave out people smaller than this fraction of the largest.
        progress: called with the fraction done and frames a second; may raise `Cancelled`: frames given out stay valid.

    Raises:
        ClipError: the clip cannot be used.
    """
    clip = clip if isinstance(clip, Clip) else Clip(clip)
    solver = MotionSolver(recoverer, clip.size, focal_length, options)
    watcher, tracker = Watcher(smallest), Tracker()
    began, done = time.perf_counter(), 0
    for chunk in _chunks(clip):
        sightings, cuts = watcher.watch(chunk)
        numbered = []
        for frame, seen, cut in zip(chunk, sightings, cuts, strict=True):
            tracks = tracker.update(frame.time, seen, cut)
            numbered.append((frame.index, frame.time, list(zip(tracks, seen, strict=True))))
        yield from solver.push(numbered)
        done += len(chunk)
        if progress is not None:
            pace = done / max(time.perf_counter() - began, 1e-6)
            left = "" if clip.count is None else f", {max(0, clip.count - done) / pace:.0f} s left"
            fraction = 0.0 if clip.count is None else min(done / clip.count, 1.0)
            progress(fraction, f"{done} frames, {pace:.1f} a second{left}")
    yield from solver.finish()


def _chunks(clip: Clip) -> Iterator[list[Frame]]:
    length = int(min(max(SEARCH_EVERY * clip.rate / clip.step, 2), LONGEST_CHUNK))
    chunk: list[Frame] = []
    for frame in clip:
        chunk.append(frame)
        if len(chunk) == length:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
