"""Who was found in a picture: kept with the scene, so that choosing survives undo and saving."""

from __future__ import annotations

import base64
from pathlib import Path

import bpy
import numpy as np


def add(settings: bpy.types.PropertyGroup, people: dict[str, np.ndarray], drawn: bool = False) -> None:
    """More people: `boxes` (P,4), `landmarks` and `landmarks_3d` (P,33,3); all are chosen."""
    for box, *landmarks in zip(people["boxes"], people["landmarks"], people["landmarks_3d"], strict=True):
        person = settings.found.add()
        person.box, person.drawn = box.tolist(), drawn
        person.landmarks = base64.b64encode(np.asarray(landmarks, "<f4").tobytes()).decode()


def begin(settings: bpy.types.PropertyGroup, picture: str, size: tuple[int, int]) -> None:
    """Nobody is found yet in this picture."""
    clear(settings)
    settings.found_in, settings.found_size = picture, size


def clear(settings: bpy.types.PropertyGroup) -> None:
    """Forget who was found."""
    settings.found.clear()
    settings.found_in = ""


def is_current(settings: bpy.types.PropertyGroup) -> bool:
    """Whether they were found in the picture that the panel shows now."""
    if settings.source == "IMAGE":
        return settings.image is not None and settings.found_in == f"image:{settings.image.name}"
    return bool(settings.picture) and settings.found_in == str(Path(bpy.path.abspath(settings.picture)))


def shown(settings: bpy.types.PropertyGroup) -> np.ndarray:
    """(P,4) as the boxes are drawn and clicked: landmarks end at eyes, wrists and ankles, people do not."""
    places = boxes(settings)
    side = (places[:, 2:] - places[:, :2]).max(1, keepdims=True)
    grown = places + side * np.array([-0.04, -0.08, 0.04, 0.04], np.float32)
    return grown.clip(0, np.tile(np.array(settings.found_size, np.float32), 2))


def boxes(settings: bpy.types.PropertyGroup) -> np.ndarray:
    """(P,4) of all of them, in pixels of the upright picture."""
    return np.array([person.box for person in settings.found], np.float32).reshape(-1, 4)


def chosen(settings: bpy.types.PropertyGroup) -> dict[str, np.ndarray]:
    """Those that are chosen, as `add` took them."""
    people = [person for person in settings.found if person.chosen]
    data = b"".join(base64.b64decode(person.landmarks) for person in people)
    landmarks = np.frombuffer(data, "<f4").reshape(-1, 2, 33, 3)
    found = np.array([person.box for person in people], np.float32).reshape(-1, 4)
    return {"boxes": found, "landmarks": landmarks[:, 0], "landmarks_3d": landmarks[:, 1]}


def at(settings: bpy.types.PropertyGroup, x: float, y: float) -> int | None:
    """Number of the person whose box holds a point of the picture; where several do, the smallest box's."""
    places = shown(settings)
    hit = (places[:, 0] <= x) & (x <= places[:, 2]) & (places[:, 1] <= y) & (y <= places[:, 3])
    if not hit.any():
        return None
    areas = np.where(hit, (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1]), np.inf)
    return int(areas.argmin())


def already(settings: bpy.types.PropertyGroup, box: np.ndarray) -> bool:
    """Whether somebody stands in nearly this box already (intersection over union above 0.8)."""
    places = boxes(settings)
    if not len(places):
        return False
    low, high = np.maximum(places[:, :2], box[:2]), np.minimum(places[:, 2:], box[2:])
    shared = (high - low).clip(0).prod(1)
    both = (places[:, 2:] - places[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared
    return bool((shared / both.clip(1e-6) > 0.8).any())
