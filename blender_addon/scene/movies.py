"""Clips as Blender has them: files, picture sequences, movie clip datablocks; and the moving picture behind a scene."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bpy

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
MOVIES = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts", ".wmv", ".flv", ".ogv",
    ".3gp", ".gif",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A clip: a movie file, or pictures in order. Frames count from 0.

    numbers: the frame of each picture. first_number: what the name of frame 0 says, where names are numbered.
    """

    name: str
    movie: Path | None = None
    pictures: tuple[Path, ...] = ()
    numbers: tuple[int, ...] = ()
    first_number: int | None = None

    @property
    def path(self) -> Path:
        """The file, or the first picture."""
        return self.movie or self.pictures[0]

    def within(self, start: int, stop: int | None, step: int) -> list[tuple[int, Path]]:
        """The pictures of a range of frames, with their numbers."""
        return [
            (number, path)
            for number, path in zip(self.numbers, self.pictures, strict=True)
            if number >= start and (stop is None or number < stop) and (number - start) % step == 0
        ]


def of_files(files: Sequence[Path]) -> Source:
    """A movie file; a folder of pictures; one picture of a numbered sequence; or several pictures.

    Raises ValueError with a sentence where that is no clip.
    """
    first = files[0]
    if len(files) > 1:
        if any(file.suffix.lower() not in PICTURES for file in files):
            raise ValueError("Choose one movie file, or the pictures of one sequence.")
        return _sequence(sorted(files, key=_natural), first.parent.name)
    if first.is_dir():
        found = [file for file in first.iterdir() if file.suffix.lower() in PICTURES]
        if not found:
            raise ValueError(f"There are no pictures in the folder {first}.")
        return _sequence(sorted(found, key=_natural), first.name)
    if not first.is_file():
        raise ValueError(f"There is no file {first}; choose the clip again.")
    if first.suffix.lower() in PICTURES:
        stem, digits = _numbered(first)
        if not digits:
            raise ValueError(f"{first.name} is a single picture; choose a movie, a folder or a numbered picture.")
        same = [file for file in first.parent.iterdir() if file.suffix.lower() == first.suffix.lower()]
        found = [file for file in same if _numbered(file)[0] == stem and _numbered(file)[1]]
        return _sequence(sorted(found, key=_natural), stem.strip("._- ") or first.parent.name)
    return Source(first.stem, movie=first)


def of_clip(clip: bpy.types.MovieClip) -> Source:
    """What a movie clip datablock shows. Raises ValueError where its file is gone."""
    path = Path(bpy.path.abspath(clip.filepath, library=clip.library))
    if not path.is_file():
        raise ValueError(f"The file of the clip {clip.name!r} is gone: {path}.")
    name = Path(clip.name).stem
    if clip.source == "MOVIE":
        return Source(name, movie=path)
    found = of_files([path])
    from_here = [(n, p) for n, p in zip(found.numbers, found.pictures, strict=True) if _natural(p) >= _natural(path)]
    start = from_here[0][0]
    numbers, pictures = zip(*((number - start, picture) for number, picture in from_here), strict=True)
    return Source(name, None, pictures, numbers, (found.first_number or 0) + start)


def _sequence(files: Sequence[Path], name: str) -> Source:
    parts = [_numbered(file) for file in files]
    numbers = [int(digits) if digits else 0 for _, digits in parts]
    one_name = len({stem for stem, _ in parts}) == 1 and len(set(numbers)) == len(files) and all(d for _, d in parts)
    if one_name and numbers == sorted(numbers):
        return Source(name, None, tuple(files), tuple(number - numbers[0] for number in numbers), numbers[0])
    return Source(name, None, tuple(files), tuple(range(len(files))))


def _numbered(path: Path) -> tuple[str, str]:
    """A file's name before its number, and the number's digits."""
    found = re.fullmatch(r"(.*?)(\d+)", path.stem)
    return (found[1], found[2]) if found else (path.stem, "")


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name)]


def show_behind(
    data: bpy.types.Camera, source: Source, clip: bpy.types.MovieClip | None, first: float, index: int, frames: float,
    pace: float,
) -> None:  # fmt: skip
    """The clip behind everything that a camera sees, moving with the timeline.

    Args:
        clip: shown itself, where Blender has one, in its own place on the timeline (`pace` is 1 then).
        first: the scene frame at which frame `index` of the clip is seen. frames: how many scene frames follow.
        pace: frames of the clip for each frame of the scene.
    """
    data.show_background_images = True
    background = data.background_images.new()
    background.alpha, background.display_depth, background.frame_method = 1.0, "BACK", "FIT"
    if clip is not None and pace == 1:
        background.source, background.clip = "MOVIE_CLIP", clip
        return
    image = bpy.data.images.load(str(source.path), check_existing=False)
    background.image = image
    if source.movie is None:
        if source.first_number is None:
            return  # names without numbers: Blender shows the first picture alone
        image.source = "SEQUENCE"
    user = background.image_user
    user.use_auto_refresh, user.use_cyclic = True, False
    user.frame_start = round(first)
    user.frame_duration = max(round(frames) + 1, 1)
    offset = index + (source.first_number - 1 if source.first_number is not None else 0)
    user.frame_offset = offset
    if pace == 1 or frames <= 0:
        return
    path = "background_images[0].image_user.frame_offset"
    for frame in (round(first), round(first + frames)):
        user.frame_offset = offset + round((frame - first) * (pace - 1))
        data.keyframe_insert(path, frame=frame)
