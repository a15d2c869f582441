"""The orientation that a camera wrote into a JPEG. Blender has no function for it."""

from __future__ import annotations

import math
import struct
from pathlib import Path

UPRIGHT = (0.0, False, False)
# EXIF's eight orientations as (rotation, flip x, flip y) that show the stored pixels upright.
TURNS = {
    1: UPRIGHT, 2: (0.0, True, False), 3: (math.pi, False, False), 4: (0.0, False, True),
    5: (math.pi / 2, True, False), 6: (-math.pi / 2, False, False), 7: (-math.pi / 2, True, False),
    8: (math.pi / 2, False, False),
}  # fmt: skip


def stored(number: int, u: float, v: float) -> tuple[float, float]:
    """Where a point of the upright picture lies in the stored one, whose EXIF orientation is `number`.

    Both from the upper left corner, 0 to 1 to the right and down.
    """
    match number:
        case 2:
            return 1 - u, v
        case 3:
            return 1 - u, 1 - v
        case 4:
            return u, 1 - v
        case 5:
            return v, u
        case 6:
            return v, 1 - u
        case 7:
            return 1 - v, 1 - u
        case 8:
            return 1 - v, u
    return u, v


def upright(number: int, u: float, v: float) -> tuple[float, float]:
    """The inverse of `stored`."""
    return stored({6: 8, 8: 6}.get(number, number), u, v)


def tag_of(picture: Path) -> int:
    """EXIF's orientation tag of a file; 1 where it has none or cannot be read."""
    try:
        with open(picture, "rb") as file:
            return tag(file.read(1 << 18))
    except OSError:
        return 1


def orientation(picture: Path) -> tuple[float, bool, bool]:
    """How a background picture must be turned (radians) and flipped to be upright; nothing for other files."""
    return TURNS.get(tag_of(picture), UPRIGHT)


def tag(data: bytes) -> int:
    """EXIF's orientation tag (1 to 8) from the start of a JPEG file; 1 where there is none."""
    if data[:2] != b"\xff\xd8":
        return 1
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if marker == 0xE1 and segment[:6] == b"Exif\0\0":
            return _tiff(segment[6:])
        position += 2 + length
    return 1


def _tiff(data: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return 1
    (count,) = struct.unpack_from(order + "H", data, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        number, _, _, value = struct.unpack_from(order + "HHIH", data, entry)
        if number == 0x0112:
            return value if value in TURNS else 1
    return 1
