"""Binary glTF 2.0 under construction: a JSON document and the one buffer that its accessors lie in."""

from __future__ import annotations

import json
import struct

import numpy as np

from . import __version__


class Gltf:
    """Collects nodes, accessors and whatever else a caller puts into `document`, and makes the file's bytes."""

    VERTEX_BUFFER, INDEX_BUFFER = 34962, 34963
    TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}  # noqa: RUF012
    KINDS = {"<f4": 5126, "<u4": 5125, "<u2": 5123}  # noqa: RUF012

    def __init__(self) -> None:
        self.data = bytearray()
        self.document: dict = {
            "asset": {"version": "2.0", "generator": f"MEGA Mesh Recovery {__version__}"},
            "scene": 0,
            "scenes": [{"nodes": []}],
            "nodes": [],
            "bufferViews": [],
            "accessors": [],
        }

    def accessor(self, array: np.ndarray, target: int | None = None, bounds: bool = False, kind: str = "<f4") -> int:
        """The number of a new accessor over an array (N,) or (N, C).

        Args:
            target: VERTEX_BUFFER or INDEX_BUFFER (whose numbers become uint32); None for what is neither.
            bounds: say the least and greatest values, as positions and key times must.
            kind: the numbers' type, one of KINDS.
        """
        kind = "<u4" if target == self.INDEX_BUFFER else kind
        array = np.ascontiguousarray(array, kind)
        columns = 1 if array.ndim == 1 else array.shape[1]
        views, accessors = self.document["bufferViews"], self.document["accessors"]
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": array.nbytes}
        views.append(view if target is None else view | {"target": target})
        self.data += array.tobytes()  # all rows are multiples of four bytes: views stay aligned
        entry = {
            "bufferView": len(views) - 1,
            "componentType": self.KINDS[kind],
            "count": len(array),
            "type": self.TYPES[columns],
        }
        if bounds:
            rows = array.reshape(len(array), columns)
            entry |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        accessors.append(entry)
        return len(accessors) - 1

    def node(self, fields: dict, top: bool = True) -> int:
        """The number of a new node, of the scene itself where it is at the top."""
        self.document["nodes"].append(fields)
        number = len(self.document["nodes"]) - 1
        if top:
            self.document["scenes"][0]["nodes"].append(number)
        return number

    def add_camera(self, focal_length: float, picture_size: tuple[int, int]) -> None:
        """The picture's camera, at the origin."""
        width, height = picture_size
        fields = {"yfov": 2 * np.arctan2(height / 2, focal_length), "aspectRatio": width / height, "znear": 0.01}
        perspective = {name: float(value) for name, value in fields.items()}
        self.document["cameras"] = [{"type": "perspective", "perspective": perspective}]
        self.node({"name": "picture", "camera": 0})

    def skin_material(self) -> int:
        """The number of the plain material that bodies have."""
        if "materials" not in self.document:
            surface = {"baseColorFactor": [0.72, 0.72, 0.75, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}
            self.document["materials"] = [{"name": "skin", "pbrMetallicRoughness": surface}]
        return 0

    def binary(self, extras: dict) -> bytes:
        """The file, with `extras` in the document."""
        document = self.document | {"extras": extras}
        if self.data:
            document["buffers"] = [{"byteLength": len(self.data)}]
        else:
            # glTF forbids empty lists.
            document = {name: value for name, value in document.items() if name not in ("bufferViews", "accessors")}
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        if self.data:
            chunks += struct.pack("<I4s", len(self.data), b"BIN\0") + bytes(self.data)
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
