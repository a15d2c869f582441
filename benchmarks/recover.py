"""How long one photograph takes, warm: `python benchmarks/recover.py [PICTURE…]`.

Without a picture, one with a drawn person is used. Times are the best and the median of several runs of the whole of
`Recoverer.recover`, reading included, and of its stages for one hypothesis.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import mega_backend
from mega_backend import camera, overlay, people, pictures
from mega_backend.body import Body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE")
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--hypotheses", type=int, nargs="+", default=[1, 25])
    options = parser.parse_args()
    recoverer = mega_backend.load(options.model, device=options.device)
    print(f"{torch.get_num_threads()} torch threads, model {recoverer.card['name']}")
    for name in options.pictures or [None]:
        source = drawn_person() if name is None else name
        found = recoverer.recover(source, hypotheses=max(options.hypotheses))  # warms everything up
        print(f"\n{name or 'drawn person'}: {len(found.people)} people")
        report("read", options.runs, lambda source=source: pictures.read(source))
        image = pictures.read(source)
        report("find people", options.runs, lambda image=image: people.find(image))
        for count in options.hypotheses:
            report(
                f"recover, {count} hypotheses",
                options.runs,
                lambda source=source, count=count: recoverer.recover(source, hypotheses=count),
            )


def report(what: str, runs: int, work: Callable[[], object]) -> None:
    """Print the best and the median time of some work."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    print(f"  {what:<24} best {min(seconds):6.2f} s   median {statistics.median(seconds):6.2f} s")


def drawn_person(width: int = 1200, height: int = 900) -> np.ndarray:
    """The bundled body at rest, drawn on grey: (H, W, 3) uint8."""
    body = Body.bundled()
    rest = body.rest(torch.zeros(1, body.shape_count))[0][0].numpy()
    vertices = (rest - rest.mean(axis=0)) * [1, -1, -1] + [0, 0.1, 14.0]
    mesh = overlay.Mesh(vertices, body.faces.numpy(), np.array([0.82, 0.62, 0.52]))
    focal_length = camera.default_focal_length((width, height))
    return overlay.render([mesh], focal_length, np.full((height, width, 3), 160, np.uint8))


if __name__ == "__main__":
    main()
