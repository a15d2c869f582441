"""One person as a mesh object: quads, UVs, parts as vertex groups, hypotheses as shape keys, and what it came from."""

from __future__ import annotations

from collections.abc import Sequence

import bpy
import numpy as np

from ...mega_backend.protocol import PERSON_STATE, BodyTopology
from . import axes, material

KEY_NAME = "Hypothesis {}"
PER_HYPOTHESIS = ("tokens", "log_probability", "rotation", "translation")
"""Those of the stored arrays that have a row for each hypothesis."""
STORED = tuple(name for name in PERSON_STATE if name != "vertices")
"""Arrays kept on the object as custom properties; the vertices are its shape keys."""
SPREAD = "mega_spread"
"""A float attribute of the vertices: the standard deviation over samples in metres."""


def add(name: str, arrays: dict[str, np.ndarray], topology: BodyTopology) -> bpy.types.Object:
    """An object for a person, not yet in any collection.

    `arrays` has `vertices` (N,V,3) in camera space, `translation` (N,3), and what else a person has. The object stands
    where hypothesis 0 does; its shape keys are hypotheses 0 (the basis) to N − 1.
    """
    vertices = axes.to_blender(arrays["vertices"])
    origin = vertices[0].mean(0)
    person = add_plain(name, vertices[0] - origin, topology)
    person.location = origin
    person["mega_origin"] = [float(value) for value in origin]
    set_hypotheses(person, vertices - origin)
    store(person, arrays)
    return person


def add_plain(name: str, vertices: np.ndarray, topology: BodyTopology) -> bpy.types.Object:
    """An object of one shape (V,3), not yet in any collection: surface, skin, body parts as vertex groups."""
    mesh = bpy.data.meshes.new(name)
    _surface(mesh, vertices, topology)
    mesh.materials.append(material.skin())
    person = bpy.data.objects.new(name, mesh)
    _parts(person, topology)
    return person


def set_hypotheses(person: bpy.types.Object, vertices: np.ndarray) -> None:
    """Shape keys (N,V,3) in the object's own space, in place of those it has, which keep their keyframes."""
    person.data.vertices.foreach_set("co", vertices[0].astype(np.float32).ravel())
    for index, shape in enumerate(vertices):
        blocks = person.data.shape_keys.key_blocks if person.data.shape_keys else ()
        if index < len(blocks):
            key = blocks[index]
        else:
            key = person.shape_key_add(name=KEY_NAME.format(index), from_mix=False)
        key.points.foreach_set("co", shape.astype(np.float32).ravel())
        key.value = 0.0
    for key in person.data.shape_keys.key_blocks[len(vertices) :][::-1]:
        person.shape_key_remove(key)
    person.data.update()


def store(person: bpy.types.Object, arrays: dict[str, np.ndarray]) -> None:
    """Keep a person's arrays on its object, as custom properties that Blender saves, and its spread as an attribute."""
    for name in STORED:
        if name in arrays:
            array = np.asarray(arrays[name])
            person[f"mega_{name}"] = array.ravel().tolist()
            person[f"mega_{name}_shape"] = list(array.shape)
    if "spread" in arrays:
        set_attribute(person.data, SPREAD, arrays["spread"])


def stored(person: bpy.types.Object) -> dict[str, np.ndarray]:
    """The arrays that `store` kept."""
    arrays = {}
    for name in STORED:
        if f"mega_{name}" in person:
            dtype = np.uint16 if name == "tokens" else np.float32
            shape = tuple(person[f"mega_{name}_shape"])
            arrays[name] = np.array(person[f"mega_{name}"].to_list(), dtype).reshape(shape)
    return arrays


def replace(person: bpy.types.Object, arrays: dict[str, np.ndarray]) -> None:
    """Other hypotheses for a person that exists; its object stays where it is."""
    set_hypotheses(person, axes.to_blender(arrays["vertices"]) - np.array(person["mega_origin"]))
    store(person, arrays)


def state(person: bpy.types.Object, hypothesis: int) -> dict[str, np.ndarray]:
    """One hypothesis of a person as the backend wants it back (`PERSON_STATE`).

    Raises ValueError where the object does not have what that needs.
    """
    arrays = stored(person)
    if not {*STORED} <= arrays.keys() or "mega_origin" not in person:
        raise ValueError(f"{person.name} has lost what it was made from; recover it from the picture again.")
    hypothesis = min(hypothesis, len(arrays["tokens"]) - 1)
    for name in PER_HYPOTHESIS:
        arrays[name] = arrays[name][hypothesis : hypothesis + 1]
    keys = person.data.shape_keys
    points = keys.key_blocks[min(hypothesis, len(keys.key_blocks) - 1)].points if keys else person.data.vertices
    shape = coordinates(points) + np.array(person["mega_origin"], np.float32)
    return {**arrays, "vertices": axes.to_camera(shape)[None].astype(np.float32)}


def coordinates(points: bpy.types.bpy_prop_collection) -> np.ndarray:
    """(V,3) of vertices or of a shape key's points."""
    values = np.empty(len(points) * 3, np.float32)
    points.foreach_get("co", values)
    return values.reshape(-1, 3)


def set_attribute(mesh: bpy.types.Mesh, name: str, values: np.ndarray) -> None:
    """A float per vertex under a name."""
    attribute = mesh.attributes.get(name) or mesh.attributes.new(name, "FLOAT", "POINT")
    attribute.data.foreach_set("value", np.asarray(values, np.float32).ravel())


def get_attribute(mesh: bpy.types.Mesh, name: str) -> np.ndarray | None:
    """(V,) of a float attribute, or None where the mesh has none of that name."""
    attribute = mesh.attributes.get(name)
    if attribute is None or len(attribute.data) != len(mesh.vertices):
        return None
    values = np.empty(len(mesh.vertices), np.float32)
    attribute.data.foreach_get("value", values)
    return values


def _surface(mesh: bpy.types.Mesh, vertices: np.ndarray, topology: BodyTopology) -> None:
    """Vertices, faces and UVs in bulk: `from_pydata` takes ten times as long."""
    count, sides = topology.quads.shape
    mesh.vertices.add(len(vertices))
    mesh.vertices.foreach_set("co", vertices.astype(np.float32).ravel())
    mesh.loops.add(count * sides)
    mesh.loops.foreach_set("vertex_index", topology.quads.astype(np.int32).ravel())
    mesh.polygons.add(count)
    mesh.polygons.foreach_set("loop_start", np.arange(0, count * sides, sides, dtype=np.int32))
    if len(topology.uv):
        layer = mesh.uv_layers.new(name="UVMap")
        layer.uv.foreach_set("vector", topology.uv[topology.face_uv.ravel()].astype(np.float32).ravel())
    mesh.update(calc_edges=True)
    mesh.shade_smooth()


def _parts(person: bpy.types.Object, topology: BodyTopology) -> None:
    for index, name in enumerate(topology.part_names):
        group = person.vertex_groups.new(name=name)
        group.add(np.flatnonzero(topology.vertex_part == index).tolist(), 1.0, "REPLACE")


def people(objects: Sequence[bpy.types.Object]) -> list[bpy.types.Object]:
    """Those of the objects that are people of ours."""
    return [each for each in objects if each.type == "MESH" and each.mega.is_person]
