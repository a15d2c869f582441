"""`mega explain PICTURE -o FOLDER`: sheets that show how an answer comes about and how sure it is.

Three for each person: the iterations of one generation; samples of what is seen and of what is seen when the lower body
is covered; and the spread over all samples, by vertex and by joint.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from . import overlay, pictures
from .files import atomic_write
from .result import Person

if TYPE_CHECKING:
    from .people import Detection
    from .recovery import Recoverer
    from .recovery.generation import Iteration

SIDE = 300
"""Of a tile, pixels."""
SHOWN = 6
"""Samples in a row of a sheet."""
BELOW_HIPS = tuple(range(25, 33))
"""The landmarks that the cover hides: knees and everything below."""
GREY, INK = (236, 236, 236), (40, 40, 40)
KNOWN, UNKNOWN = np.array([0.45, 0.66, 0.95]), np.array([0.86, 0.84, 0.80])
"""Colours of body parts whose tokens are drawn, and of those that are still the network's best guess."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("picture", metavar="PICTURE", help="JPEG, PNG, WebP, TIFF, BMP or GIF")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the sheets go")
    parser.add_argument("--person", type=int, metavar="P", help="only this one, from 1 (all; the largest first)")


def explain(
    recoverer: Recoverer,
    picture: Any,
    samples: int = 25,
    seed: int = 0,
    steps: int = 5,
    temperature: float = 1.0,
    person: int | None = None,
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> dict[str, np.ndarray]:
    """Sheets (H, W, 3) uint8 RGB by name: `person_1_iterations`, `…_samples`, `…_spread`.

    Args:
        picture: as `pictures.read` takes it. person: number from 1; all by default.

    Raises:
        ValueError: nobody is found, or not so many people, or the model cannot sample.
    """
    image = pictures.read(picture)
    found = recoverer.find(picture)
    if not found:
        raise ValueError("nobody is found in the picture: there is nothing to explain")
    numbers = range(1, len(found) + 1) if person is None else [person]
    if not 1 <= min(numbers) <= max(numbers) <= len(found):
        raise ValueError(f"there is no person {person}: choose 1 to {len(found)}")
    options = {"hypotheses": max(samples, 2), "seed": seed, "steps": steps, "temperature": temperature}
    sheets = {}
    for done, number in enumerate(numbers):
        progress(done / len(numbers), f"person {number}")
        detection = found[number - 1]
        plain = recoverer.recover(picture, found=[detection], **options)
        seen, lens = plain.people[0], plain.focal_length
        hidden, without = covered(image, detection)
        guessed = recoverer.recover(hidden, found=[without], focal_length=lens, **options).people[0]
        path = recoverer.generation(image, detection, seed=seed, steps=steps, temperature=temperature)
        name = f"person_{number}"
        sheets[f"{name}_iterations"] = iterations_sheet(recoverer, path, seen.rotation[0])
        rows = [("as it is", image, seen), ("lower body covered", hidden, guessed)]
        sheets[f"{name}_samples"] = samples_sheet(rows, recoverer.faces, lens, window(seen))
        sheets[f"{name}_spread"] = spread_sheet(
            [(text, each) for text, _, each in rows], recoverer.faces, plain.meta["joint_names"]
        )
    progress(1.0, "done")
    return sheets


def covered(image: np.ndarray, detection: Detection) -> tuple[np.ndarray, Detection]:
    """The picture (H, W, 3) with a grey board before the person's legs, and the detection without what it hides."""
    hips, ankles = detection.landmarks[[23, 24], :2], detection.landmarks[[27, 28], :2]
    x0, y0, x1, y1 = detection.box
    margin = 0.1 * max(x1 - x0, y1 - y0)
    top = hips[:, 1].mean() + 0.15 * (ankles[:, 1].mean() - hips[:, 1].mean())
    rows = slice(max(int(min(top, y1)), 0), int(y1 + margin))
    columns = slice(max(int(x0 - margin), 0), int(x1 + margin))
    hidden = image.copy()
    hidden[rows, columns] = 150
    landmarks, deep = detection.landmarks.copy(), detection.landmarks_3d.copy()
    landmarks[list(BELOW_HIPS), 2] = -1
    deep[list(BELOW_HIPS)] = np.nan
    return hidden, replace(detection, landmarks=landmarks, landmarks_3d=deep)


def iterations_sheet(recoverer: Recoverer, path: list[Iteration], rotation: np.ndarray) -> np.ndarray:
    """Each moment of a generation from the camera's side and from the left; drawn parts blue, guessed ones pale.

    rotation (3, 3): of the body against the camera.
    """
    part = recoverer.tokenizer.token_part.cpu().numpy()
    vertex_part = recoverer.body.vertex_part.cpu().numpy()
    tiles = []
    for number, moment in enumerate(path):
        share = np.array([moment.known[part == index].mean() if (part == index).any() else moment.known.mean()
                          for index in range(len(recoverer.body.part_names))])  # fmt: skip
        level = share[vertex_part][:, None]
        mesh = recoverer.decode(moment.tokens[None])[0] @ rotation.T
        drawn = overlay.views(mesh, recoverer.faces, (0, 90), SIDE, UNKNOWN + level * (KNOWN - UNKNOWN))
        drawn = np.concatenate([drawn[:, :SIDE], drawn[:, SIDE:]])
        tiles.append(_titled(drawn, f"{number}: {int(moment.known.sum())} of {len(part)} drawn"))
    return np.concatenate(tiles, axis=1)


def samples_sheet(
    rows: list[tuple[str, np.ndarray, Person]], faces: np.ndarray, focal_length: float, frame: tuple[slice, slice]
) -> np.ndarray:
    """For each row (title, picture, person): the picture, hypotheses over it, and below them from the left."""
    sheets = []
    for title, image, person in rows:
        columns = [_titled(np.concatenate([_tile(image[frame]), np.full((SIDE, SIDE, 3), GREY, np.uint8)]), title)]
        # The first one is the deterministic answer; the others are spread evenly over the samples.
        for number in np.unique(np.linspace(0, person.hypotheses - 1, SHOWN).round().astype(int)):
            mesh = overlay.Mesh(person.vertices[number], faces, overlay.PALETTE[0])
            over = overlay.render([mesh], focal_length, image, 0.9)[frame]
            aside = overlay.views(person.vertices[number], faces, (90,), SIDE)
            text = "most likely" if number == 0 else f"sample {number}"
            columns.append(_titled(np.concatenate([_tile(over), aside]), text))
        sheets.append(np.concatenate(columns, axis=1))
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate([_widened(sheet, width) for sheet in sheets])


def spread_sheet(rows: list[tuple[str, Person]], faces: np.ndarray, joint_names: list[str]) -> np.ndarray:
    """For each row (title, person): spread by vertex from three sides, by joint as bars, and how it is distributed."""
    sheets = []
    for title, person in rows:
        body = overlay.views(person.vertices[0], faces, (0, 90, 180), SIDE, overlay.spread_colours(person.spread))
        text = f"{title}: spread, blue 0 to red 10 cm; mean {100 * person.spread.mean():.1f} cm"
        bars = _bars(joint_names, 100 * person.joint_spread)
        sheets.append(_titled(np.concatenate([body, bars, _histogram(100 * person.spread)], axis=1), text))
    return np.concatenate(sheets)


def window(person: Person) -> tuple[slice, slice]:
    """Rows and columns of a picture that show a person with some space around."""
    x0, y0, x1, y1 = person.box
    margin = 0.15 * max(x1 - x0, y1 - y0)
    return slice(max(int(y0 - margin), 0), int(y1 + margin)), slice(max(int(x0 - margin), 0), int(x1 + margin))


def _bars(names: list[str], centimetres: np.ndarray) -> np.ndarray:
    """Bars (SIDE, 1.2 SIDE, 3), a row for each joint."""
    canvas = np.full((SIDE, round(1.2 * SIDE), 3), GREY, np.uint8)
    step, left = SIDE / len(names), 110
    most = max(float(centimetres.max()), 5.0)
    for row, (name, value) in enumerate(zip(names, centimetres, strict=True)):
        y = round((row + 0.5) * step)
        cv2.putText(canvas, name, (4, y + 3), cv2.FONT_HERSHEY_SIMPLEX, 0.32, INK, 1, cv2.LINE_AA)
        end = left + round((canvas.shape[1] - left - 50) * float(value) / most)
        colour = tuple(int(255 * c) for c in overlay.spread_colours(np.array([value / 100]))[0])
        cv2.rectangle(canvas, (left, y - 3), (end, y + 3), colour, -1)
        cv2.putText(canvas, f"{value:.1f} cm", (end + 4, y + 3), cv2.FONT_HERSHEY_SIMPLEX, 0.32, INK, 1, cv2.LINE_AA)
    return canvas


def _histogram(centimetres: np.ndarray, bins: int = 20) -> np.ndarray:
    """How many vertices have which spread (SIDE, SIDE, 3)."""
    canvas = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    most = max(float(centimetres.max()), 5.0)
    count, _ = np.histogram(centimetres, bins, (0, most))
    for index, height in enumerate(200 * count / count.max()):
        x = 20 + index * (SIDE - 40) // bins
        cv2.rectangle(canvas, (x, 250 - round(float(height))), (x + (SIDE - 40) // bins - 2, 250), (110, 150, 215), -1)
    cv2.putText(canvas, "vertices by spread", (20, 290), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
    for x, text in ((18, "0"), (SIDE - 60, f"{most:.0f} cm")):
        cv2.putText(canvas, text, (x, 268), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
    return canvas


def _tile(picture: np.ndarray) -> np.ndarray:
    """A picture in the middle of a grey square."""
    zoom = SIDE / max(picture.shape[:2])
    size = (max(1, min(SIDE, round(picture.shape[1] * zoom))), max(1, min(SIDE, round(picture.shape[0] * zoom))))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)
    tile = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = small
    return tile


def _titled(tile: np.ndarray, text: str) -> np.ndarray:
    """The tile under a line of text."""
    head = np.full((26, tile.shape[1], 3), GREY, np.uint8)
    cv2.putText(head, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return np.concatenate([head, tile])


def _widened(sheet: np.ndarray, width: int) -> np.ndarray:
    return np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0)), constant_values=GREY[0])


def main(options: argparse.Namespace, recoverer: Recoverer, progress: Callable[[float, str], None]) -> list[Path]:
    """Write the sheets that the command's options ask for; returns where they are."""
    sheets = explain(
        recoverer, options.picture, options.hypotheses, options.seed, options.steps, options.temperature,
        options.person, progress,
    )  # fmt: skip
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, sheet in sheets.items():
        data = cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()
        written.append(atomic_write(folder / f"{name}.png", lambda stream, data=data: stream.write(data)))
    return written
