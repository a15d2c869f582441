"""`mega video CLIP -o OUT.npz|.bvh`: what it takes and what it writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mega_backend.files import OutputError, atomic_write

FORMATS = (".npz", ".bvh")
_ARRAYS = ("track", "rotations", "shape", "translation", "joints", "box", "landmarks", "hypothesis")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add = parser.add_argument
    add("clip", metavar="CLIP", help="video file, folder of pictures, or pattern such as frame_%%04d.png")
    add("-o", "--output", required=True, metavar="OUT", help="OUT.npz; OUT.bvh, one file for each person")
    add("--start", type=int, default=0, metavar="F", help="first frame (0)")
    add("--stop", type=int, metavar="F", help="frame to stop before (the end)")
    add("--step", type=int, default=1, metavar="K", help="take every K-th frame (1)")
    add("--rate", type=float, metavar="FPS", help="frames a second, of image sequences")
    add("--focal", type=float, metavar="PIXELS", help="focal length (default: 4.46 × longer side)")
    add("--smoothing", choices=("off", "light", "strong"), default="light", help="of the motion (light)")


def main(options: argparse.Namespace) -> int:
    """Run the command; Ctrl-C keeps the frames that are done."""
    ending = Path(options.output).suffix.lower()
    if ending not in FORMATS:
        raise OutputError(f"'{options.output}' must end in {' or '.join(FORMATS)}")
    from tqdm import tqdm

    import mega_backend

    from .clips import Clip
    from .motion import MotionOptions

    clip = Clip(options.clip, options.start, options.stop, options.step, options.rate)
    recoverer = mega_backend.load(options.model, device=options.device)
    settings = MotionOptions(
        options.hypotheses, options.seed, options.steps, options.temperature, smoothing=options.smoothing
    )
    results, code = [], 0
    with tqdm(total=clip.count, desc=Path(options.clip).name, file=sys.stderr, disable=None, unit="frame") as bar:
        try:
            for frame in recoverer.recover_video(clip, options=settings, focal_length=options.focal):
                results.append(frame)
                bar.update(1)
        except KeyboardInterrupt:
            code = 130
    if not results:
        raise OutputError("stopped before the first frame was done: nothing was written")
    for problem in clip.problems:
        print(f"mega: {problem}", file=sys.stderr)
    for path in save(results, options.output, recoverer.body, clip.step / clip.rate):
        print(path)
    return code


def save(results: Sequence, output: str | Path, body, frame_time: float) -> list[Path]:
    """Write results (`FrameResult`s in order); returns the files written.

    .npz: `frame_index` and `frame_time` (F,), and for each person in a frame a row of `frame` (its index), `track`,
    `rotations` (J, 3, 3), `shape` (S,), `translation` (3,), `joints` (22, 3), `box`, `landmarks`, `hypothesis`;
    vertices are body.skin(rotations, shape) + translation. .bvh: OUT_1.bvh… for each person, from the first frame to
    the last that shows them; while they are away they stay as they were.
    """
    output = Path(output)
    rows = [(frame.index, person) for frame in results for person in frame.people]
    if output.suffix.lower() == ".npz":
        arrays = {name: np.array([getattr(person, name) for _, person in rows]) for name in _ARRAYS}
        arrays["frame"] = np.array([index for index, _ in rows], np.int64)
        arrays["frame_index"] = np.array([frame.index for frame in results], np.int64)
        arrays["frame_time"] = np.array([frame.time for frame in results])
        return [atomic_write(output, lambda stream: np.savez_compressed(stream, **arrays))]
    from .bvh import bvh

    written = []
    for track in sorted({person.track for _, person in rows}):
        motion = []
        for frame in results:
            here = next((person for person in frame.people if person.track == track), None)
            if here or motion:
                motion.append(here or motion[-1])
        while len(motion) > 1 and motion[-1] is motion[-2]:
            motion.pop()
        text = bvh(motion, body, frame_time).encode()
        path = output.with_name(f"{output.stem}_{track}{output.suffix}")
        written.append(atomic_write(path, lambda stream, text=text: stream.write(text)))
    return written
