"""A clip to motion: watch, track, choose, smooth. `Recoverer.recover_video` is this."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing

import numpy as np

from mega_backend import Cancelled, turns
from mega_backend.recovery import Progress, Recoverer

from .clips import Clip, Frame
from .hypotheses import packed, unpacked
from .journal import Journal
from .motion import FrameResult, MotionOptions, MotionSolver, sightings_of
from .tracking import Sighting, Tracker
from .watch import Watcher

SEARCH_EVERY = 1.0
"""Seconds between searches of the whole picture: who is new there is followed backwards, so that nobody is late."""
LONGEST_CHUNK = 16
"""Frames that are looked at together."""
MOST_FRAMES = 3 * LONGEST_CHUNK
"""Pictures in memory at once: of a chunk that is done, one that is looked at and one that is read."""
LOOKED_EVERY = 0.2
"""Seconds between reports of how far a chunk is, while it is waited for."""
_SEEN = ("box", "landmarks", "landmarks_3d", "colours")


def recover_video(
    recoverer: Recoverer,
    clip: Clip | str | os.PathLike,
    options: MotionOptions | None = None,
    focal_length: float | None = None,
    smallest: float = 0.4,
    progress: Progress | None = None,
    journal: Journal | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Iterator[FrameResult]:
    """The people of each frame of a clip, in order, about three and a half seconds behind what has been looked at.

    Args:
        clip: a `Clip`, or what makes one. options: how motion is made.
        focal_length: in pixels, of the whole clip; by default that of `camera.default_focal_length`.
        smallest: leave out people smaller than this fraction of the largest.
        progress: called several times a second with the fraction done and frames a second; may raise `Cancelled`:
            frames given out stay valid.
        journal: keeps what is worked out; what an earlier run of the same settings left in it is not done again.
        stopped: asked between chunks; once it says yes, what has been looked at is finished and the clip ends there.

    Raises:
        ClipError: the clip cannot be used.
    """
    clip = clip if isinstance(clip, Clip) else Clip(clip)
    solver = MotionSolver(recoverer, clip.size, focal_length, options)
    watcher, tracker, pace = Watcher(smallest), Tracker(), _Pace(clip.count, progress)
    clip.problems, last = [], -1
    for record in journal.chunks() if journal else ():
        chunk, sightings, cuts = _recalled(record)
        for frame, unreadable in zip(chunk, record["unreadable"], strict=True):
            if unreadable:
                clip.bridge(frame.index)
        frames = _numbered(tracker, chunk, sightings, cuts)
        yield from solver.add(frames, unpacked(record, sightings_of(frames)))
        watcher.restore(record)
        last = chunk[-1].index
        pace.recall(len(chunk))
    with closing(_watched(watcher, _chunks(clip, last), pace.look)) as watched:
        for chunk, sightings, cuts, state in watched:
            frames = _numbered(tracker, chunk, sightings, cuts)
            rows = solver.hypotheses(frames)
            if journal is not None:
                journal.append({**_record(chunk, sightings, cuts), **packed(rows), **state})
            yield from solver.add(frames, rows)
            pace.tell(len(chunk))
            if stopped is not None and stopped():
                break
    yield from solver.finish()


def _numbered(
    tracker: Tracker, chunk: Sequence[Frame], sightings: Sequence[Sequence[Sighting]], cuts: Sequence[bool]
) -> list[tuple[int, float, list[tuple[int, Sighting]]]]:
    """The frames as `MotionSolver` takes them: everybody with a number."""
    numbered = []
    for frame, seen, cut in zip(chunk, sightings, cuts, strict=True):
        tracks = tracker.update(frame.time, seen, cut)
        numbered.append((frame.index, frame.time, list(zip(tracks, seen, strict=True))))
    return numbered


def _chunks(clip: Clip, behind: int) -> Iterator[list[Frame]]:
    length = int(min(max(SEARCH_EVERY * clip.rate / clip.step, 2), LONGEST_CHUNK))
    chunk: list[Frame] = []
    for frame in clip.behind(behind):
        chunk.append(frame)
        if len(chunk) == length:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


_Watched = tuple[list[Frame], list[list[Sighting]], list[bool], dict[str, np.ndarray]]


def _watched(watcher: Watcher, chunks: Iterable[list[Frame]], looked: Callable[[int], None]) -> Iterator[_Watched]:
    """Chunks, what `watcher` sees in them, and its state after each.

    While the caller works on one chunk, the next is looked at on a thread: the two take about the same time. looked is
    called on the caller's thread, while it waits, with how many frames of the chunk were looked at; it may raise.
    """
    given_up = threading.Event()
    done = 0

    def note(frames: int) -> None:
        nonlocal done
        done = frames
        if given_up.is_set():
            raise Cancelled

    def look(chunk: list[Frame]) -> _Watched:
        note(0)
        return chunk, *watcher.watch(chunk, note), watcher.state()

    def finished(ahead: Future[_Watched]) -> _Watched:
        while not wait([ahead], LOOKED_EVERY).done:
            looked(done)
        return ahead.result()

    with ThreadPoolExecutor(1, "mega-watch") as thread:
        before: Future[_Watched] | None = None
        try:
            for chunk in chunks:
                ahead = thread.submit(turns.in_context(look), chunk)
                if before is not None:
                    yield finished(before)
                before = ahead
            if before is not None:
                yield finished(before)
        finally:
            given_up.set()
            thread.shutdown(cancel_futures=True)


def _record(
    chunk: Sequence[Frame], sightings: Sequence[Sequence[Sighting]], cuts: Sequence[bool]
) -> dict[str, np.ndarray]:
    """What was seen in a chunk, as arrays that `_recalled` reads."""
    everybody = [seen for frame in sightings for seen in frame]
    return {
        "index": np.array([frame.index for frame in chunk]),
        "time": np.array([frame.time for frame in chunk]),
        "unreadable": np.array([frame.picture is None for frame in chunk]),
        "cut": np.array(cuts),
        "count": np.array([len(frame) for frame in sightings]),
        **{f"seen_{name}": np.array([getattr(seen, name) for seen in everybody]) for name in _SEEN},
    }


def _recalled(record: Mapping[str, np.ndarray]) -> tuple[list[Frame], list[list[Sighting]], list[bool]]:
    """The chunk of a record without its pictures."""
    chunk = [Frame(int(i), float(t), None) for i, t in zip(record["index"], record["time"], strict=True)]
    everybody = iter(zip(*(record[f"seen_{name}"] for name in _SEEN), strict=True))
    sightings = [[Sighting(*next(everybody)) for _ in range(count)] for count in record["count"]]
    return chunk, sightings, record["cut"].tolist()


class _Pace:
    """Tells how far a clip is, how fast it goes and how long it will take."""

    def __init__(self, total: int | None, progress: Progress | None) -> None:
        self.total, self.progress = total, progress
        self.began, self.done, self.recalled = time.perf_counter(), 0, 0

    def recall(self, frames: int) -> None:
        """Frames that an earlier run had worked out: they say nothing about the speed."""
        self.done, self.recalled, self.began = self.done + frames, self.recalled + frames, time.perf_counter()

    def look(self, frames: int) -> None:
        """So many frames of the next chunk have been looked at: the work can be stopped here too."""
        if self.progress is None:
            return
        fraction = 0.0 if self.total is None else min((self.done + frames) / self.total, 1.0)
        self.progress(fraction, self._text() if self.done > self.recalled else "looking at the first frames")

    def tell(self, frames: int) -> None:
        self.done += frames
        self.look(0)

    def _text(self) -> str:
        pace = (self.done - self.recalled) / max(time.perf_counter() - self.began, 1e-6)
        left = "" if self.total is None else f", {max(0, self.total - self.done) / pace:.0f} s left"
        return f"{self.done} frames, {pace:.1f} a second{left}"
