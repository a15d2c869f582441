"""Small movies and picture sequences for tests."""

from pathlib import Path

import cv2
import numpy as np

SIZE = (96, 64)


def movie(path: Path, frames: int = 12, rate: float = 12.5) -> Path:
    """A movie file whose frames get brighter."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, SIZE)
    for index in range(frames):
        writer.write(np.full((SIZE[1], SIZE[0], 3), 40 + 5 * index, np.uint8))
    writer.release()
    return path


def sequence(folder: Path, frames: int = 6, first: int = 101) -> list[Path]:
    """Numbered pictures in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"shot_{first + index:04d}.png" for index in range(frames)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((SIZE[1], SIZE[0], 3), 40 + 5 * index, np.uint8))
    return paths
