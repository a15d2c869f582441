"""Exports: other programs' readers find the same meshes."""

import json
import struct

import numpy as np
import pytest
from ball import ball

from mega_backend import export
from mega_backend.body import Body
from mega_backend.files import OutputError
from mega_backend.protocol import topology_of


@pytest.fixture(scope="module")
def topology():
    return topology_of(Body.bundled())


@pytest.fixture(scope="module")
def recovery(tiny):
    """Two people with three hypotheses each."""
    return tiny.resample(tiny.random(2), hypotheses=3)


def y_up(vertices: np.ndarray) -> np.ndarray:
    return vertices * [1, -1, -1]


def glb(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    return json.loads(data[20 : 20 + size]), data[20 + size + 8 :]


def values(document: dict, binary: bytes, index: int) -> np.ndarray:
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    kind = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
    columns = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[accessor["type"]]
    raw = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    array = np.frombuffer(raw, kind).reshape(-1, columns)
    assert len(array) == accessor["count"]
    if "min" in accessor:
        assert np.allclose(array.min(0), accessor["min"]) and np.allclose(array.max(0), accessor["max"])
    return array


def test_glb_holds_people_alternatives_and_camera(recovery, topology, tmp_path):
    (path,) = export.save(recovery, tmp_path / "a.glb", topology)
    document, binary = glb(path)
    assert [node["name"] for node in document["nodes"]] == ["person_1", "person_2", "picture"]
    origin = export.split_at_seams(recovery.faces, topology)[0]
    for node, mesh, person in zip(document["nodes"], document["meshes"], recovery.people, strict=False):
        primitive = mesh["primitives"][0]
        base = values(document, binary, primitive["attributes"]["POSITION"])
        placed = base + node["translation"]
        assert np.allclose(placed, y_up(person.vertices[0])[origin], atol=1e-4)
        assert len(primitive["targets"]) == len(mesh["weights"]) == len(mesh["extras"]["targetNames"]) == 2
        for number, target in enumerate(primitive["targets"], 1):
            moved = placed + values(document, binary, target["POSITION"])
            assert np.allclose(moved, y_up(person.vertices[number])[origin], atol=1e-4)
        assert values(document, binary, primitive["indices"]).max() == len(origin) - 1
        assert len(values(document, binary, primitive["attributes"]["TEXCOORD_0"])) == len(origin)
    # A glTF camera looks along -z with y up: points project as in the picture.
    fields = document["cameras"][0]["perspective"]
    point = y_up(recovery.people[0].vertices[0][0])
    height = recovery.picture_size[1] / 2
    row = height - height * point[1] / -point[2] / np.tan(fields["yfov"] / 2)
    expected = (
        recovery.focal_length * recovery.people[0].vertices[0][0, 1] / recovery.people[0].vertices[0][0, 2] + height
    )
    assert np.isclose(row, expected, atol=1e-2)


def test_glb_faces_point_outwards(recovery, topology, tmp_path):
    (path,) = export.save(recovery, tmp_path / "a.glb", topology)
    document, binary = glb(path)
    primitive = document["meshes"][0]["primitives"][0]
    corner = values(document, binary, primitive["attributes"]["POSITION"])[
        values(document, binary, primitive["indices"]).reshape(-1, 3)
    ].astype(np.float64)
    volume = np.einsum("fi,fi->f", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])).sum() / 6
    assert volume > 0


def test_obj(recovery, topology, tmp_path):
    paths = export.save(recovery, tmp_path / "a.obj", topology)
    assert [path.name for path in paths] == ["a.obj", "a_2.obj", "a_3.obj"]
    for number, path in enumerate(paths):
        lines = path.read_text().splitlines()
        vertices = numbers(lines, "v ").reshape(-1, 3)
        expected = np.concatenate([person.vertices[number] for person in recovery.people])
        assert np.allclose(vertices, y_up(expected), atol=2e-6)
        assert [line for line in lines if line.startswith("o ")] == ["o person_1", "o person_2"]
        corners = numbers(lines, "f ").astype(int).reshape(2, 13710, 4, 3)
        assert (corners[..., 0] == corners[..., 2]).all()
        assert np.array_equal(corners[1, :, :, 0] - 1 - 13718, topology.quads)
        assert np.array_equal(corners[0, :, :, 1] - 1, topology.face_uv)


def numbers(lines: list[str], start: str) -> np.ndarray:
    """All numbers of the lines that begin with a word."""
    text = " ".join(line[len(start) :] for line in lines if line.startswith(start))
    return np.array(text.replace("/", " ").split(), float)


def test_ply(recovery, topology, tmp_path):
    path = export.save(recovery, tmp_path / "a.ply", topology)[0]
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert b"element vertex 27436" in header and b"element face 27420" in header
    table = np.frombuffer(body, [("p", "<f4", 3), ("n", "<f4", 3), ("spread", "<f4"), ("person", "u1")], 27436)
    assert np.allclose(table["p"], y_up(np.concatenate([person.vertices[0] for person in recovery.people])), atol=1e-6)
    assert np.allclose(np.linalg.norm(table["n"], axis=1), 1, atol=1e-3)
    assert set(table["person"]) == {1, 2}
    assert len(body) == 27436 * 29 + 27420 * 17


def test_readable_by_another_program(recovery, topology, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    for ending in (".glb", ".obj", ".ply"):
        path = export.save(recovery, tmp_path / f"a{ending}", topology)[0]
        bounds = trimesh.load(path).bounds
        expected = y_up(np.concatenate([person.vertices[0] for person in recovery.people]))
        assert np.allclose(bounds, [expected.min(0), expected.max(0)], atol=1e-3)


@pytest.mark.parametrize("ending", export.FORMATS)
def test_nobody_is_a_valid_file(recovery, topology, tmp_path, ending):
    nobody = type(recovery)(recovery.picture_size, recovery.focal_length, [], recovery.faces, recovery.meta)
    (path,) = export.save(nobody, tmp_path / f"a{ending}", topology)
    assert path.stat().st_size > 0


def test_unknown_ending(recovery, tmp_path):
    with pytest.raises(OutputError, match=r"must end in"):
        export.save(recovery, tmp_path / "a.fbx")


def test_normals_of_a_ball():
    vertices, faces = ball()
    normals = export.vertex_normals(vertices, faces)
    assert (np.einsum("vi,vi->v", normals, vertices) > 0.99).all()
