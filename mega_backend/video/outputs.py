"""A clip's results as files: .npz with everything, and .glb, .usd, .bvh, .pc2 for other programs."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mega_backend.files import OutputError, atomic_write
from mega_backend.protocol import topology_of

from .animation import Animation, animations

if TYPE_CHECKING:
    from mega_backend.body import Body

    from .motion import FrameResult

USD = (".usd", ".usda", ".usdc")
FORMATS = (".npz", ".glb", *USD, ".bvh", ".pc2")
CODECS = {".webm": "VP80", ".mp4": "mp4v"}
"""Overlays, in what OpenCV's own FFmpeg can write: VP8, which browsers and players show, and MPEG-4 part 2, which
editing programs and players read and browsers do not. It has no H.264; its VP9 takes ten times as long."""
_ARRAYS = ("track", "rotations", "shape", "translation", "joints", "box", "landmarks", "hypothesis")


@dataclass(frozen=True)
class Shot:
    """What files say of the clip: frames a second (of what was taken), focal length in pixels, width and height."""

    rate: float
    focal_length: float
    size: tuple[int, int]


def check_format(output: str | Path) -> str:
    """The name's ending. Raises OutputError unless it can be written here."""
    ending = Path(output).suffix.lower()
    if ending not in FORMATS:
        raise OutputError(f"'{output}' must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if ending in USD:
        from .usd import check_available

        check_available()
    return ending


def check_overlay(path: str | os.PathLike) -> Path:
    """An overlay's path. Raises OutputError unless its ending is one that can be written."""
    path = Path(path)
    if path.suffix.lower() not in CODECS:
        raise OutputError(f"'{path}' must end in {' or '.join(CODECS)}")
    return path


def save(results: Sequence[FrameResult], output: str | Path, body: Body, shot: Shot) -> list[Path]:
    """Write results in the format that the name's ending says; returns the files written.

    .npz: `frame_index` and `frame_time` (F,), and for each person in a frame a row of `frame` (its index), `track`,
    `rotations` (J, 3, 3), `shape` (S,), `translation` (3,), `joints` (22, 3), `box`, `landmarks`, `hypothesis`;
    vertices are body.skin(rotations, shape) + translation. `focal_length`, `picture_size`, `rate` of the clip.
    .glb, .usd: everybody, skinned and moving. .bvh: OUT_1.bvh…, one file for each person. .pc2: OUT_1.pc2…, a vertex
    cache each, and OUT_1.obj…, the mesh that it moves. While somebody is away they stay as they were.

    Raises:
        OutputError: unknown ending, or a file cannot be written.
    """
    output = Path(output)
    ending = check_format(output)
    if ending == ".npz":
        return [atomic_write(output, lambda stream: np.savez_compressed(stream, **_table(results, shot)))]
    people, topology = animations(results), topology_of(body)
    if ending == ".glb":
        from .gltf import write_glb

        return [atomic_write(output, lambda s: write_glb(people, body, topology, shot.focal_length, shot.size, s))]
    if ending in USD:
        from .usd import write_usd

        return [atomic_write(output, lambda s: write_usd(people, body, topology, shot.rate, ending, s))]
    written = []
    for person in people:
        path = output.with_name(f"{output.stem}_{person.track}{output.suffix}")
        even = person.evenly(shot.rate)
        if ending == ".bvh":
            from .bvh import bvh

            text = bvh(even, body, 1 / shot.rate).encode()
            written.append(atomic_write(path, lambda stream, text=text: stream.write(text)))
        else:
            written.append(atomic_write(path, lambda stream, even=even: write_pc2(even, body, stream)))
            text = _obj(next(even.vertices(body)), topology.quads).encode()
            written.append(atomic_write(path.with_suffix(".obj"), lambda stream, text=text: stream.write(text)))
    return written


def _table(results: Sequence[FrameResult], shot: Shot) -> dict[str, np.ndarray]:
    rows = [(frame.index, person) for frame in results for person in frame.people]
    arrays = {name: np.array([getattr(person, name) for _, person in rows]) for name in _ARRAYS}
    arrays["frame"] = np.array([index for index, _ in rows], np.int64)
    arrays["frame_index"] = np.array([frame.index for frame in results], np.int64)
    arrays["frame_time"] = np.array([frame.time for frame in results])
    arrays["focal_length"], arrays["rate"] = np.float64(shot.focal_length), np.float64(shot.rate)
    arrays["picture_size"] = np.array(shot.size, np.int64)
    return arrays


def write_pc2(person: Animation, body: Body, stream: BinaryIO) -> None:
    """One person's vertices of every frame as a PC2 vertex cache, y up, frames counted from the clip's first."""
    start = round(person.times[0] * (len(person.times) - 1) / max(person.times[-1] - person.times[0], 1e-6))
    stream.write(struct.pack("<12siiffi", b"POINTCACHE2\0", 1, body.vertex_count, start, 1.0, len(person.times)))
    for vertices in person.vertices(body):
        stream.write(vertices.astype("<f4").tobytes())


def _obj(vertices: np.ndarray, quads: np.ndarray) -> str:
    lines = ["v %.6f %.6f %.6f\n" * len(vertices) % tuple(vertices.ravel().tolist())]
    lines.append("s 1\n" + "f %d %d %d %d\n" * len(quads) % tuple((quads + 1).ravel().tolist()))
    return "".join(lines)
