"""`mega batch`: folders of pictures and videos, here or on a Ray cluster; whatever interrupts it, the next run goes on.

A result lies in the output folder under its source's name and path; it is written whole or not at all, so that what is
there is done. What has been worked out of a video lies beside it (`.part`) until the whole of it is done, so that going
on does not begin anew. `batch.json` beside the results remembers the settings they were made with.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mega_backend
from mega_backend import Cancelled, __version__, export
from mega_backend.files import OutputError, atomic_write, sweep
from mega_backend.pictures import PictureError
from mega_backend.protocol import topology_of

log = logging.getLogger("mega.batch")

PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".ogv", ".wmv", ".flv")
VIDEO_FORMATS = ("npz", "glb")
"""Of those that pictures have too."""
SETTINGS = "batch.json"


class BatchError(ValueError):
    """A batch that cannot be done as asked. The message is one sentence for the user."""


@dataclass(frozen=True)
class Settings:
    """What decides the results. They are the same on one machine and on many."""

    model: str = "default"
    hypotheses: int = 1
    seed: int = 0
    steps: int = 5
    temperature: float = 1.0
    format: str = "npz"


@dataclass(frozen=True)
class Item:
    """A picture or video and where its result goes."""

    source: str
    output: str

    @property
    def is_video(self) -> bool:
        return Path(self.source).suffix.lower() in VIDEOS


@dataclass(frozen=True)
class Outcome:
    """What became of an item: `people` found, or the sentence that says why there is no result."""

    source: str
    people: int = 0
    error: str = ""


def plan(source: Path, target: Path, settings: Settings) -> tuple[list[Item], int]:
    """What is left to do, and how many results are there already.

    Raises:
        BatchError: no such folder, nothing in it, a format that videos do not have, or results in the target that were
            made with other settings.
    """
    if not source.is_dir():
        raise BatchError(f"there is no folder '{source}': give one with pictures or videos")
    inside = target.resolve().is_relative_to(source.resolve()) and target.resolve() != source.resolve()
    found = sorted(
        path for path in source.rglob("*")
        if path.suffix.lower() in PICTURES + VIDEOS and path.is_file() and not (inside and path.is_relative_to(target))
    )  # fmt: skip
    if not found:
        endings = ", ".join(PICTURES + VIDEOS)
        raise BatchError(f"there are no pictures or videos in '{source}': {endings} are looked for")
    if settings.format not in VIDEO_FORMATS and any(Item(str(path), "").is_video for path in found):
        several = " or ".join(VIDEO_FORMATS)
        raise BatchError(f"there are videos in '{source}', which cannot become .{settings.format}: take {several}")
    _keep_settings(target / SETTINGS, settings)
    left, done = [], 0
    for path in found:
        # The source's ending stays, so that a.jpg and a.png have results of their own, whichever comes first.
        relative = path.relative_to(source)
        output = target / relative.with_name(f"{relative.name}.{settings.format}")
        if output.is_file() and output.stat().st_mtime >= path.stat().st_mtime:
            done += 1
        else:
            left.append(Item(str(path), str(output)))
    return left, done


def _keep_settings(path: Path, settings: Settings) -> None:
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise BatchError(f"'{path}' is damaged: remove it, or choose another folder for the results")
        different = [name for name, value in asdict(settings).items() if before.get(name) != value]
        if different:
            name = different[0]
            text = f"made with {name} {before.get(name)}, not {asdict(settings)[name]}"
            raise BatchError(f"the results in '{path.parent}' were {text}: choose another folder for these")
        return
    data = json.dumps(asdict(settings), indent=2) + "\n"
    atomic_write(path, lambda stream: stream.write(data.encode()))


class FileRecovery:
    """Recovers the people of picture and video files; one for each worker.

    Args:
        settings: of the batch.
        load: gives the recoverer; called once.
    """

    def __init__(self, settings: Settings, load: Callable[[], Any]) -> None:
        self.settings = settings
        self.recoverer = load()
        self.topology = topology_of(self.recoverer.body)

    def __call__(
        self, item: Item, recoverer: Any = None, stopped: Callable[[], bool] = lambda: False
    ) -> Outcome | None:
        """The outcome; the result's file is there, whole, where it has no error.

        None where `stopped`, asked now and then during videos, said yes before it was done.
        """
        recoverer = recoverer or self.recoverer
        try:
            return self._video(item, recoverer, stopped) if item.is_video else self._picture(item, recoverer)
        except (PictureError, OutputError, ValueError) as error:
            return Outcome(item.source, error=str(error))
        except Cancelled:
            raise
        except Exception as error:
            # Whatever one file of thousands does, the others go on; the cause goes to the log.
            log.exception("no result for %s", item.source)
            return Outcome(item.source, error=f"failed unexpectedly ({type(error).__name__}: {error})")

    def _picture(self, item: Item, recoverer: Any) -> Outcome:
        settings = self.settings
        recovery = recoverer.recover(
            item.source, hypotheses=settings.hypotheses, seed=settings.seed, steps=settings.steps,
            temperature=settings.temperature,
        )  # fmt: skip
        recovery.meta["picture"] = Path(item.source).name
        export.save(recovery, item.output, self.topology)
        return Outcome(item.source, people=len(recovery.people))

    def _video(self, item: Item, recoverer: Any, stopped: Callable[[], bool]) -> Outcome | None:
        from mega_backend import camera
        from mega_backend.video import outputs
        from mega_backend.video.clips import Clip
        from mega_backend.video.journal import Journal
        from mega_backend.video.motion import MotionOptions

        settings, clip = self.settings, Clip(item.source)
        stamp = Path(item.source).stat()
        identity = {**asdict(settings), "version": __version__, "clip": [stamp.st_size, stamp.st_mtime_ns]}
        part = Path(item.output + ".part")
        try:
            journal = Journal(part, identity)
        except OutputError:
            # The settings of the folder are the same: the video is another one by now.
            shutil.rmtree(part, ignore_errors=True)
            journal = Journal(part, identity)
        options = MotionOptions(settings.hypotheses, settings.seed, settings.steps, settings.temperature)
        focal_length = camera.default_focal_length(clip.size)
        frames = list(
            recoverer.recover_video(clip, options=options, focal_length=focal_length, journal=journal, stopped=stopped)
        )
        if stopped():
            return None
        outputs.save(frames, item.output, recoverer.body, outputs.Shot(clip.rate, focal_length, clip.size))
        journal.remove()
        return Outcome(item.source, people=len({person.track for frame in frames for person in frame.people}))


def run_here(
    items: list[Item], settings: Settings, load: Callable[[], Any], together: int, rows: int = 64
) -> Iterator[Outcome]:
    """Outcomes as they come; `together` files at the same time share the device's batches."""
    from mega_backend import batching, turns
    from mega_backend.service.model import share

    batcher = batching.Batcher(rows)
    batcher.start()
    work = FileRecovery(settings, load)
    shared = share(work.recoverer, batcher)
    stopped = threading.Event()

    def one(item: Item) -> Outcome | None:
        if stopped.is_set():
            return None
        with turns.request(turns.Requester()):
            return work(item, shared, stopped.is_set)

    pool = ThreadPoolExecutor(together, thread_name_prefix="mega-batch")
    try:
        for future in as_completed([pool.submit(one, item) for item in items]):
            outcome = future.result()
            if outcome is not None:
                yield outcome
    finally:
        stopped.set()
        batcher.stop()
        pool.shutdown(wait=False, cancel_futures=True)


def report(outcomes: Iterable[Outcome], total: int, done: int) -> int:
    """Print what happens; the exit code: 0 all done, 1 some files have no result."""
    from tqdm import tqdm

    failed = 0
    with tqdm(total=total + done, initial=done, unit=" files", file=sys.stderr, disable=None) as bar:
        for outcome in outcomes:
            bar.update(1)
            if outcome.error:
                failed += 1
                tqdm.write(f"mega batch: {outcome.source}: {outcome.error}", file=sys.stderr)
    if failed:
        print(f"mega batch: {failed} of {total} files have no result; the same command tries them again",
              file=sys.stderr)  # fmt: skip
    return 1 if failed else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mega batch`, beside those of sampling and model."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="pictures and videos, in folders of any depth")
    add("-o", "--output", metavar="FOLDER", required=True, help="results, under the same names; those there are kept")
    add("--format", choices=[ending[1:] for ending in export.FORMATS], default="npz", help="of the results (npz)")
    add("--cluster", metavar="ADDRESS", help="Ray cluster: auto, HOST:6379 or ray://HOST:10001; folders must be shared")
    add("--workers", type=int, default=0, metavar="N", help="at the same time (a GPU each with --cluster)")


def main(options: argparse.Namespace) -> int:
    """`mega batch`."""
    settings = Settings(
        options.model if options.model == "default" else str(Path(options.model).resolve()),
        options.hypotheses, options.seed, options.steps, options.temperature, options.format,
    )  # fmt: skip
    # Workers on other machines have other working directories.
    source, target = Path(options.folder).resolve(), Path(options.output).resolve()
    if options.workers < 0:
        raise BatchError(f"--workers {options.workers} cannot be: give 1 or more, or leave it out")
    items, done = plan(source, target, settings)
    print(f"{len(items)} files to do, {done} done already", flush=True)
    _sweep(target, settings)
    if not items:
        return 0
    load = partial(mega_backend.load, settings.model, device=options.device)
    if options.cluster:
        from mega_backend import cluster

        gpus = 1 if options.device.startswith("cuda") else 0
        outcomes = cluster.run_batch(items, settings, load, options.cluster, options.workers, gpus)
    else:
        together = options.workers or (2 if options.device == "cpu" else 8)
        outcomes = run_here(items, settings, load, together, rows=64 if options.device == "cpu" else 1024)
    code = report(outcomes, len(items), done)
    # What was too young before.
    _sweep(target, settings)
    return code


def _sweep(target: Path, settings: Settings) -> None:
    """Remove what batches into this folder that were killed have left half-written."""
    for ending in (f".{settings.format}", SETTINGS):
        sweep(target, ending)
