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


def orientation(picture: Path) -> tuple[float, bool, bool]:
    """How a background picture must be turned (radians) and flipped to be upright; nothing for other files."""
    try:
        with open(picture, "rb") as file:
            return TURNS.get(tag(file.read(1 << 18)), UPRIGHT)
    except OSError:
        return UPRIGHT  # Blender shows the missing picture itself


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
