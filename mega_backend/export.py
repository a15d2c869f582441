"""Results as files for other programs: Wavefront .obj, binary glTF .glb, Stanford .ply, and our own .npz.

Camera coordinates are turned into these formats' usual axes, x right, y up, z towards the viewer: the camera of
the picture sits at the origin and looks along −z, as glTF's cameras do.
"""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import __version__
from .files import OutputError, atomic_write
from .gltf import Gltf
from .protocol import BodyTopology
from .result import Person, Recovery

FORMATS = (".npz", ".obj", ".glb", ".ply")
_TO_Y_UP = np.array([1, -1, -1], np.float32)


def save(recovery: Recovery, path: str | os.PathLike, topology: BodyTopology | None = None) -> list[Path]:
    """Write a result in the format that the name's ending says.

    .npz holds everything. .glb holds a mesh for each person with the alternatives as morph targets. .obj and .ply know
    no alternatives: OUT.obj holds everybody's first hypothesis, OUT_2.obj… the further ones.

    Args:
        topology: quads and UVs of the body; without it, meshes are plain triangles.

    Returns:
        The files written.

    Raises:
        OutputError: unknown ending, or the file cannot be written.
    """
    path = Path(path)
    check_format(path)
    ending = path.suffix.lower()
    if ending == ".npz":
        return [recovery.save(path)]
    if ending == ".glb":
        return [atomic_write(path, lambda stream: write_glb(recovery, stream, topology))]
    write = write_obj if ending == ".obj" else write_ply
    written = []
    # The first hypothesis last: where its file is, all are, so that a batch that was interrupted knows what is done.
    for hypothesis in reversed(range(max((person.hypotheses for person in recovery.people), default=1))):
        name = path if hypothesis == 0 else path.with_name(f"{path.stem}_{hypothesis + 1}{path.suffix}")
        written.append(atomic_write(name, lambda stream, h=hypothesis: write(recovery, stream, topology, h)))
    return written[::-1]


def check_format(path: str | os.PathLike) -> None:
    """Raise OutputError unless the name's ending is one of `FORMATS`."""
    if Path(path).suffix.lower() not in FORMATS:
        raise OutputError(f"'{path}' must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Smooth normals (…, V, 3) float32 of meshes (…, V, 3) with triangles (F, 3): area-weighted, unit length."""
    vertices = np.asarray(vertices, np.float32)
    flat = vertices.reshape(-1, *vertices.shape[-2:])
    result = np.empty_like(flat)
    for mesh, out in zip(flat, result, strict=True):
        a, b, c = (mesh[faces[:, corner]] for corner in range(3))
        across = np.cross(b - a, c - a)
        for axis in range(3):
            total = np.zeros(len(mesh))
            for corner in range(3):
                total += np.bincount(faces[:, corner], across[:, axis], len(mesh))
            out[:, axis] = total
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
    return result.reshape(vertices.shape)


def write_obj(recovery: Recovery, stream: BinaryIO, topology: BodyTopology | None = None, hypothesis: int = 0) -> None:
    """One hypothesis of everybody as Wavefront text, an object for each person, quads and UVs where they are known."""
    faces = recovery.faces if topology is None else topology.quads
    uv = None if topology is None or not len(topology.uv) else topology.uv
    lines = [f"# MEGA Mesh Recovery {__version__}, metres, y up\n"]
    if uv is not None:
        lines.append(_rows("vt %.6f %.6f\n", uv))
    base = 1
    for number, person in enumerate(recovery.people, 1):
        vertices = person.vertices[min(hypothesis, person.hypotheses - 1)]
        normals = vertex_normals(vertices, recovery.faces)
        lines.append(f"o person_{number}\n")
        lines.append(_rows("v %.6f %.6f %.6f\n", vertices * _TO_Y_UP))
        lines.append(_rows("vn %.4f %.4f %.4f\n", normals * _TO_Y_UP))
        lines.append("s 1\n")
        corners = faces + base
        if uv is None:
            lines.append(_rows("f" + " %d//%d" * faces.shape[1] + "\n", np.repeat(corners, 2, axis=1)))
        else:
            triples = np.stack([corners, topology.face_uv + 1, corners], axis=-1).reshape(len(faces), -1)
            lines.append(_rows("f" + " %d/%d/%d" * faces.shape[1] + "\n", triples))
        base += len(vertices)
    stream.write("".join(lines).encode())


def _rows(form: str, array: np.ndarray) -> str:
    """Every row of an array through a format; one big format is much faster than many small ones."""
    return (form * len(array)) % tuple(array.ravel().tolist())


def write_ply(recovery: Recovery, stream: BinaryIO, topology: BodyTopology | None = None, hypothesis: int = 0) -> None:
    """One hypothesis of everybody as binary PLY: positions, normals, spread (metres) and the person's number."""
    layout = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz", "spread")] + [("person", "<u1")]
    faces = recovery.faces if topology is None else topology.quads
    tables, all_faces, base = [], [], 0
    for number, person in enumerate(recovery.people, 1):
        vertices = person.vertices[min(hypothesis, person.hypotheses - 1)]
        table = np.zeros(len(vertices), layout)
        normals = vertex_normals(vertices, recovery.faces)
        for axis, name in enumerate("xyz"):
            table[name] = vertices[:, axis] * _TO_Y_UP[axis]
            table[f"n{name}"] = normals[:, axis] * _TO_Y_UP[axis]
        table["spread"], table["person"] = person.spread, number
        tables.append(table)
        all_faces.append(faces + base)
        base += len(vertices)
    corners = faces.shape[1]
    face_table = np.zeros(len(faces) * len(tables), [("count", "u1"), ("corners", "<i4", (corners,))])
    if tables:
        face_table["count"], face_table["corners"] = corners, np.concatenate(all_faces)
    header = ["ply", "format binary_little_endian 1.0", f"comment MEGA Mesh Recovery {__version__}, metres, y up"]
    header += [
        f"element vertex {base}",
        *(f"property float {name}" for name, _ in layout[:-1]),
        "property uchar person",
    ]
    header += [f"element face {len(face_table)}", "property list uchar int vertex_indices", "end_header\n"]
    stream.write("\n".join(header).encode())
    for table in [*tables, face_table]:
        stream.write(table.tobytes())


def write_glb(recovery: Recovery, stream: BinaryIO, topology: BodyTopology | None = None) -> None:
    """Binary glTF 2.0: a node and mesh for each person, the alternatives as morph targets, and the picture's camera.

    Spread lies in the vertex attribute `_SPREAD` (metres); the picture's size, focal length and `meta` in `extras`.
    """
    builder = Gltf()
    origin, triangles, uv = split_at_seams(recovery.faces, topology)
    for number, person in enumerate(recovery.people, 1):
        _add_person(builder, f"person_{number}", person, recovery.faces, origin, triangles, uv)
    builder.add_camera(recovery.focal_length, recovery.picture_size)
    extras = {
        "picture_size": list(recovery.picture_size),
        "focal_length": float(recovery.focal_length),
        "meta": recovery.meta,
    }
    stream.write(builder.binary(extras))


def split_at_seams(
    faces: np.ndarray, topology: BodyTopology | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """glTF wants one UV per vertex: vertices on UV seams are doubled.

    Returns:
        origin (W,): the body's vertex that each written vertex is; triangles (F, 3) of written vertices; uv (W, 2) or
        None.
    """
    if topology is None or not len(topology.uv):
        return np.arange(int(faces.max(initial=-1)) + 1), faces, None
    pairs = np.stack([topology.quads, topology.face_uv], axis=-1).reshape(-1, 2)
    unique, index = np.unique(pairs, axis=0, return_inverse=True)
    corners = index.reshape(topology.quads.shape)
    fan = [corners[:, [0, i, i + 1]] for i in range(1, corners.shape[1] - 1)]
    uv = topology.uv[unique[:, 1]].copy()
    uv[:, 1] = 1 - uv[:, 1]  # glTF counts v from the top
    return unique[:, 0], np.concatenate(fan), uv


def _add_person(
    builder: Gltf,
    name: str,
    person: Person,
    faces: np.ndarray,
    origin: np.ndarray,
    triangles: np.ndarray,
    uv: np.ndarray | None,
) -> None:
    # Each person's node stands where its body's middle is, so that turning the node turns the body in place.
    meshes = person.vertices * _TO_Y_UP
    middle = meshes[0].mean(axis=0)
    meshes = (meshes - middle)[:, origin]
    normals = (vertex_normals(person.vertices, faces) * _TO_Y_UP)[:, origin]
    attributes = {
        "POSITION": builder.accessor(meshes[0], builder.VERTEX_BUFFER, bounds=True),
        "NORMAL": builder.accessor(normals[0], builder.VERTEX_BUFFER),
        "_SPREAD": builder.accessor(person.spread[origin], builder.VERTEX_BUFFER),
    }
    if uv is not None:
        attributes["TEXCOORD_0"] = builder.accessor(uv, builder.VERTEX_BUFFER)
    primitive = {
        "attributes": attributes,
        "indices": builder.accessor(triangles.ravel(), builder.INDEX_BUFFER),
        "material": builder.skin_material(),
    }
    mesh = {"name": name, "primitives": [primitive]}
    if len(meshes) > 1:
        primitive["targets"] = [
            {
                "POSITION": builder.accessor(shape - meshes[0], builder.VERTEX_BUFFER, bounds=True),
                "NORMAL": builder.accessor(normal - normals[0], builder.VERTEX_BUFFER),
            }
            for shape, normal in zip(meshes[1:], normals[1:], strict=True)
        ]
        mesh["weights"] = [0.0] * (len(meshes) - 1)
        mesh["extras"] = {"targetNames": [f"alternative_{number}" for number in range(1, len(meshes))]}
    builder.document.setdefault("meshes", []).append(mesh)
    fields = {"name": name, "mesh": len(builder.document["meshes"]) - 1, "translation": middle.tolist()}
    builder.node(fields | {"extras": {"log_probability": person.log_probability.tolist()}})
