"""`mega video CLIP -o OUT`: what it takes and what it writes."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mega_backend import __version__
from mega_backend.commands.telling import progress_bar
from mega_backend.files import OutputError

from . import outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add = parser.add_argument
    add("clip", metavar="CLIP", help="video file, folder of pictures, or pattern such as frame_%%04d.png")
    endings = ", ".join(outputs.FORMATS[:-1])
    add("-o", "--output", action="append", default=[], metavar="OUT",
        help=f"a file ending in {endings} or {outputs.FORMATS[-1]}; repeat for several")  # fmt: skip
    add("--overlay", metavar="OUT.webm", help="draw the bodies over the clip: .webm for browsers, or .mp4")
    add("--opacity", type=float, default=0.9, metavar="A", help="of the drawn bodies, 0 to 1 (0.9)")
    add("--start", type=int, default=0, metavar="F", help="first frame (0)")
    add("--stop", type=int, metavar="F", help="frame to stop before (the end)")
    add("--step", type=int, default=1, metavar="K", help="take every K-th frame (1)")
    add("--rate", type=float, metavar="FPS", help="frames a second, of image sequences")
    add("--focal", type=float, metavar="PIXELS", help="focal length (default: 4.46 × longer side)")
    add("--smoothing", choices=("off", "light", "strong"), default="light", help="of the motion (light)")
    add("--no-feet", dest="feet", action="store_false", help="let feet slide: do not hold them while they stand")


def main(options: argparse.Namespace) -> int:
    """Run the command. Ctrl-C writes the frames that are done; the same command then goes on where it stopped."""
    targets = [*options.output, *filter(None, [options.overlay])]
    if not targets:
        raise OutputError("nothing to write: give -o OUT or --overlay OUT.webm")
    for output in options.output:
        outputs.check_format(output)
    if options.overlay:
        outputs.check_overlay(options.overlay)
    import mega_backend
    from mega_backend import camera

    from .clips import Clip
    from .journal import Journal
    from .motion import MotionOptions
    from .recover import recover_video

    clip = Clip(options.clip, options.start, options.stop, options.step, options.rate)
    settings = MotionOptions(
        options.hypotheses,
        options.seed,
        options.steps,
        options.temperature,
        smoothing=options.smoothing,
        hold_feet=options.feet,
    )
    focal_length = options.focal or camera.default_focal_length(clip.size)
    recoverer = mega_backend.load(options.model, device=options.device, precision=options.precision)
    journal = Journal(Path(targets[0] + ".part"), _identity(options, clip.size, recoverer.card["name"]))
    results = []
    with _interruptible() as stopped, progress_bar(Path(options.clip).name, leave=True) as progress:
        work = recover_video(
            recoverer, clip, settings, focal_length, progress=progress, journal=journal, stopped=stopped
        )
        results += work
        interrupted = stopped()
    for problem in clip.problems:
        print(f"mega: {problem}", file=sys.stderr)
    if not results:
        raise OutputError("stopped before the first frame was done: nothing was written")
    _write(options, results, clip, recoverer.body, focal_length)
    if interrupted:
        print(f"mega: stopped after {len(results)} frames; the same command goes on from there", file=sys.stderr)
        return 130
    journal.remove()
    return 0


def _write(options: argparse.Namespace, results: list, clip: Any, body: Any, focal_length: float) -> None:
    """Every output that is asked for, each named on standard output when it is there."""
    from tqdm import tqdm

    from .drawing import write_overlay

    shot = outputs.Shot(clip.rate / clip.step, focal_length, clip.size)
    for output in options.output:
        for path in outputs.save(results, output, body, shot):
            print(path)
    if options.overlay:
        with tqdm(total=len(results), desc="overlay", file=sys.stderr, disable=None, unit="frame") as bar:
            advance = lambda: bar.update(1)  # noqa: E731
            print(write_overlay(results, clip, body, focal_length, options.overlay, options.opacity, advance))


def _identity(options: argparse.Namespace, size: tuple[int, int], model: str) -> dict:
    """What two runs must share for one to go on with what the other worked out. Smoothing may differ."""
    source = Path(options.clip)
    stamp = source.stat() if source.is_file() else None
    names = ("hypotheses", "seed", "steps", "temperature", "start", "stop", "step", "rate", "focal", "precision")
    return {
        "version": __version__,
        "journal": 2,
        "clip": [str(source.resolve()), *([stamp.st_size, stamp.st_mtime_ns] if stamp else [])],
        "size": list(size),
        "model": [options.model, model],
        **{name: getattr(options, name) for name in names},
    }


@contextmanager
def _interruptible() -> Iterator:
    """Ctrl-C asks to stop, once; again it ends the program. Gives a function that says whether it was asked."""
    asked = []

    def note(number, frame) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("mega: stopping after this chunk of frames …", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
