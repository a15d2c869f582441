"""Where results and drawings go, and how they are written."""

import argparse
import os
from pathlib import Path

import numpy as np

from mega_backend import export
from mega_backend.files import OutputError, atomic_write
from mega_backend.result import Recovery


def check_output(options: argparse.Namespace, other: bool = False) -> None:
    """Raise OutputError unless something is to be written, or something other is to come out."""
    if options.output is None and options.overlay is None and not other:
        raise OutputError("nothing to write: give -o OUT or --overlay OUT.png")


def load_model(options: argparse.Namespace):
    """Load the model; its import of torch takes seconds, so options are checked before."""
    from mega_backend import load

    return load(options.model, device=options.device, precision=options.precision)


def is_folder(output: str | None) -> bool:
    """Whether OUT names a folder: one that is there, or one that is to be made (it ends in a slash)."""
    return output is not None and (output.endswith(("/", os.sep)) or Path(output).is_dir())


def names_of(pictures: list[str], output: str | None, ending: str, several: bool) -> list[Path | None]:
    """Where the result for each picture goes: OUT itself, or in the folder OUT a file named after the picture."""
    if output is None:
        return [None] * len(pictures)
    if not several:
        if ending != ".png":
            export.check_format(output)
        elif Path(output).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise OutputError(f"'{output}' must end in .png, .jpg or .webp")
        return [Path(output)]
    if Path(output).suffix.lower() in (*export.FORMATS, ".png", ".jpg", ".jpeg", ".webp"):
        raise OutputError(f"several pictures need a folder, not the one file '{output}'")
    used: set[str] = set()
    names = []
    for picture in pictures:
        stem = name = Path(picture).stem or "picture"
        number = 2
        while name in used:
            name, number = f"{stem}_{number}", number + 1
        used.add(name)
        names.append(Path(output) / f"{name}{ending}")
    return names


def write(
    recovery: Recovery, recoverer, output, overlay, options: argparse.Namespace, picture: str | None = None
) -> None:
    """Write the result and the drawing, whichever are asked for."""
    if output is not None:
        from mega_backend.protocol import topology_of

        export.save(recovery, output, topology_of(recoverer.body))
    if overlay is not None:
        import cv2

        from mega_backend import overlay as drawing
        from mega_backend import pictures

        if picture is None:
            width, height = recovery.picture_size
            background = np.full((height, width, 3), 236, np.uint8)
        else:
            background = pictures.read(picture)
        drawn = drawing.overlay(recovery, background, opacity=options.opacity, spread=options.spread)
        done, data = cv2.imencode(Path(overlay).suffix.lower(), drawn[..., ::-1])
        if not done:
            raise OutputError(f"'{overlay}' cannot be written as a picture: choose a name ending in .png")
        atomic_write(overlay, lambda stream: stream.write(data.tobytes()))
