"""Point caches: the vertices of a mesh for each frame in a file (PC2), for clips too long for shape keys."""

from __future__ import annotations

import struct
from pathlib import Path

import bpy
import numpy as np

HEADER = struct.Struct("<12siiffi")
"""Signature, version, points, first frame, sampling, samples."""


class Writer:
    """A file that grows sample by sample and is whole after each. Raises OSError where it cannot be written."""

    def __init__(self, path: Path, points: int):
        self.path, self.points, self.samples = path, points, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115  (open as long as samples come)
        self._write_header()

    def add(self, vertices: np.ndarray) -> None:
        """(V,3) of the next sample, in the object's own space."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(vertices, "<f4").tobytes())
        self.samples += 1
        self._write_header()

    def close(self) -> None:
        self._file.close()

    def _write_header(self) -> None:
        self._file.seek(0)
        self._file.write(HEADER.pack(b"POINTCACHE2\0", 1, self.points, 0.0, 1.0, self.samples))
        self._file.flush()


def use(mesh: bpy.types.Object, path: str, first: float, spacing: float) -> None:
    """Let a mesh follow a file: its first sample at scene frame `first`, the others `spacing` frames apart."""
    modifier = mesh.modifiers.new("Mesh Cache", "MESH_CACHE")
    modifier.cache_format = "PC2"
    modifier.filepath = path
    modifier.time_mode, modifier.play_mode = "FRAME", "SCENE"
    # The sample that Blender takes is frame × scale − start.
    modifier.frame_start, modifier.frame_scale = first / spacing, 1.0 / spacing
    modifier.forward_axis, modifier.up_axis = "POS_Y", "POS_Z"


def free_path(folder: Path, name: str) -> Path:
    """A file of this name that does not exist yet."""
    path, number = folder / f"{name}.pc2", 1
    while path.exists():
        number += 1
        path = folder / f"{name}_{number}.pc2"
    return path
