"""How fast a clip becomes motion, and whether memory stays flat: `python -m benchmarks.video CLIP [--frames 200]`.

Frames a second of the whole of `recover_video`, decoding included, after a warm-up that is not counted, and of its
parts, two of which go on at the same time; the process's memory at the end of each quarter. CPU time is given too: on a
busy machine only that says much.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import mega_backend
from mega_backend.video import hypotheses, motion, recover
from mega_backend.video.clips import Clip
from mega_backend.video.motion import MotionOptions

PARTS = {
    "look for people": (recover.Watcher, "watch"),
    "hypotheses": (hypotheses.Hypothesiser, "rows"),
    "choose and smooth": (motion.MotionSolver, "add"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", metavar="CLIP")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--hypotheses", type=int, default=5)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    recoverer = mega_backend.load(options.model, device=options.device)
    settings = MotionOptions(hypotheses=options.hypotheses)
    list(recover.recover_video(recoverer, Clip(options.clip, options.start, options.start + 16), settings))
    clip = Clip(options.clip, options.start, options.start + options.frames)
    memory, people, frames = [], 0, 0
    quarter = max(1, clip.count // 4)
    with timed() as spent:
        wall, cpu = time.perf_counter(), time.process_time()
        for frame in recover.recover_video(recoverer, clip, settings):
            frames, people = frames + 1, people + len(frame.people)
            if frames % quarter == 0 and len(memory) < 4:
                memory.append(resident())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{recoverer.card['name']}, {torch.get_num_threads()} torch threads, {options.hypotheses} hypotheses")
    print(f"{frames} frames with {people / max(frames, 1):.2f} people on average")
    print(f"{frames / wall:.2f} frames a second ({wall:.1f} s); {1000 * cpu / frames:.0f} ms of CPU time a frame")
    for part, seconds in spent.items():
        print(f"  {part:<18} {100 * seconds / wall:3.0f} % of the time")
    print(f"memory at the end of each quarter: {', '.join(f'{mib:.0f}' for mib in memory)} MiB")


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds that each of `PARTS` takes, while the context lasts."""
    spent: dict[str, float] = defaultdict(float)
    before = {}

    def wrapped(part: str, call: Callable) -> Callable:
        def measured(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                spent[part] += time.perf_counter() - start

        return measured

    for part, (owner, name) in PARTS.items():
        before[part] = getattr(owner, name)
        setattr(owner, name, wrapped(part, before[part]))
    try:
        yield spent
    finally:
        for part, (owner, name) in PARTS.items():
            setattr(owner, name, before[part])


def resident() -> float:
    """Memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


if __name__ == "__main__":
    main()
