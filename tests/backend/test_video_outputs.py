"""Motion as files: every format's readers find the same moving bodies."""

import importlib.util
import json
import struct
import subprocess
import sys

import browser
import numpy as np
import pytest
import torch
from movies import movie
from scipy.spatial.transform import Rotation

from mega_backend.body import Body
from mega_backend.files import OutputError
from mega_backend.video import outputs
from mega_backend.video.animation import animations, steady
from mega_backend.video.clips import Clip
from mega_backend.video.drawing import write_overlay
from mega_backend.video.motion import FrameResult, TrackedPerson
from mega_backend.video.outputs import Shot

RATE, FRAMES = 25.0, 9
SHOT = Shot(RATE, 900.0, (640, 480))
AWAY = 4
"""The frame in which the second person is not to be seen."""


@pytest.fixture(scope="module")
def body():
    return Body.bundled()


@pytest.fixture(scope="module")
def results(body):
    """Two people who bend more and more and walk to the right."""
    random = np.random.default_rng(0)
    axes = random.normal(size=(2, body.joint_count, 3)) * 0.3
    shape = random.normal(size=(2, body.shape_count)).astype(np.float32) * 0.5
    facing = np.diag([1.0, -1.0, -1.0])
    frames = []
    for index in range(FRAMES):
        people = []
        for number in range(2):
            if number == 1 and index == AWAY:
                continue
            turned = Rotation.from_rotvec(axes[number] * (0.3 + index / FRAMES)).as_matrix()
            people.append(
                TrackedPerson(
                    number + 1,
                    (facing @ turned).astype(np.float32),
                    shape[number],
                    np.array([number - 0.5 + 0.1 * index, 0.2, 5.0], np.float32),
                    np.zeros((22, 3), np.float32),
                    np.zeros(4, np.float32),
                    np.zeros((33, 3), np.float32),
                    0,
                    np.zeros((1, 22, 3), np.float32),
                )
            )
        frames.append(FrameResult(index, index / RATE, people))
    return frames


def truth(body, results, number: int, index: int) -> np.ndarray:
    """Vertices of a person in a frame, y up."""
    person = next(person for person in results[index].people if person.track == number)
    posed = body.skin(torch.from_numpy(person.rotations)[None], torch.from_numpy(person.shape)[None])[0].numpy()
    return (posed + person.translation) * [1, -1, -1]


def test_who_is_away_stays_as_they_were(results):
    first, second = animations(results)
    assert first.present.all() and np.flatnonzero(~second.present).tolist() == [AWAY]
    assert np.array_equal(second.rotations[AWAY], second.rotations[AWAY - 1])


def test_even_frames_of_uneven_ones(results):
    (person, _) = animations(results)
    assert person.evenly(RATE) is person
    twice = person.evenly(2 * RATE)
    assert len(twice.times) == 2 * FRAMES - 1 and np.allclose(twice.translation[::2], person.translation, atol=1e-6)
    assert np.allclose(twice.translation[1], person.translation[:2].mean(0), atol=1e-6)
    assert np.allclose(twice.rotations @ twice.rotations.swapaxes(-1, -2), np.eye(3), atol=1e-5)


def test_neighbouring_quaternions_have_the_same_sign():
    turns = np.linspace(0, 4 * np.pi, 50)
    quaternions = np.stack([np.sin(turns / 2), 0 * turns, 0 * turns, np.cos(turns / 2)], axis=1)
    flipped = quaternions * np.where(np.random.default_rng(0).random(50) < 0.5, -1, 1)[:, None]
    assert ((steady(flipped)[1:] * steady(flipped)[:-1]).sum(1) > 0).all()


def test_glb_skins_to_the_same_vertices(body, results, tmp_path):
    (path,) = outputs.save(results, tmp_path / "a.glb", body, SHOT)
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    document, binary = json.loads(data[20 : 20 + size]), data[20 + size + 8 :]

    def values(index: int) -> np.ndarray:
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5125: "<u4", 5123: "<u2"}[accessor["componentType"]]
        columns = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
        return np.frombuffer(binary, kind, accessor["count"] * columns, view["byteOffset"]).reshape(-1, columns)

    for number, (skin, mesh) in enumerate(zip(document["skins"], document["meshes"], strict=True), 1):
        attributes = mesh["primitives"][0]["attributes"]
        points = values(attributes["POSITION"])
        points = np.concatenate([points, np.ones((len(points), 1))], axis=1)
        joints = np.concatenate([values(attributes[f"JOINTS_{n}"]) for n in range(2)], axis=1)
        weights = np.concatenate([values(attributes[f"WEIGHTS_{n}"]) for n in range(2)], axis=1)
        inverse = values(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
        for index in (0, 3, FRAMES - 1):
            nodes = [dict(node) for node in document["nodes"]]
            motion = document["animations"][0]
            for channel in motion["channels"]:
                sampler = motion["samplers"][channel["sampler"]]
                target = channel["target"]
                nodes[target["node"]][target["path"]] = values(sampler["output"])[index]
            parents = {child: n for n, node in enumerate(nodes) for child in node.get("children", ())}

            def world(number: int, nodes=nodes, parents=parents) -> np.ndarray:
                node, matrix = nodes[number], np.eye(4)
                turn = Rotation.from_quat(node.get("rotation", [0, 0, 0, 1])).as_matrix()
                matrix[:3, :3] = turn * node.get("scale", np.ones(3))
                matrix[:3, 3] = node.get("translation", np.zeros(3))
                return world(parents[number]) @ matrix if number in parents else matrix

            bones = np.stack([world(joint) for joint in skin["joints"]]) @ inverse
            moved = np.einsum("vk,vkxy,vy->vx", weights, bones[joints], points)[:, :3]
            expected = truth(body, results, number, index)
            # Vertices on seams are doubled, so that every point is compared with its nearest neighbour.
            nearest = [np.abs(expected - point).sum(1).min() for point in moved[::97]]
            assert max(nearest) < 1e-4


def test_pc2_holds_every_vertex_of_every_frame(body, results, tmp_path):
    written = outputs.save(results, tmp_path / "a.pc2", body, SHOT)
    assert [path.name for path in written] == ["a_1.pc2", "a_1.obj", "a_2.pc2", "a_2.obj"]
    data = written[0].read_bytes()
    name, version, count, start, rate, samples = struct.unpack_from("<12siiffi", data)
    assert (name, version, count, start, rate, samples) == (b"POINTCACHE2\0", 1, body.vertex_count, 0, 1, FRAMES)
    points = np.frombuffer(data, "<f4", offset=32).reshape(FRAMES, count, 3)
    assert np.allclose(points[5], truth(body, results, 1, 5), atol=1e-5)


def test_npz_holds_the_poses(body, results, tmp_path):
    (path,) = outputs.save(results, tmp_path / "a.npz", body, SHOT)
    with np.load(path) as arrays:
        assert len(arrays["frame"]) == 2 * FRAMES - 1 and len(arrays["frame_index"]) == FRAMES
        assert np.allclose(arrays["rotations"][0], results[0].people[0].rotations)


def test_bvh_has_the_usual_bones(body, results, tmp_path):
    path, _ = outputs.save(results, tmp_path / "a.bvh", body, SHOT)
    text = path.read_text()
    channels = 3 * text.count("JOINT") + 6
    numbers = text.split("Frame Time: 0.040000\n")[1].splitlines()
    assert len(numbers) == FRAMES and {len(line.split()) for line in numbers} == {channels}
    assert "ROOT Hips" in text and "JOINT LeftForeArm" in text and text.count("{") == text.count("}")


def test_usd_skins_to_the_same_vertices(body, results, tmp_path):
    pytest.importorskip("pxr", reason="usd-core is not installed")
    from pxr import Usd, UsdGeom, UsdSkel

    (path,) = outputs.save(results, tmp_path / "a.usd", body, SHOT)
    stage = Usd.Stage.Open(str(path))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and stage.GetTimeCodesPerSecond() == RATE
    for number in (1, 2):
        root = UsdSkel.Root(stage.GetPrimAtPath(f"/clip/person_{number}"))
        assert UsdSkel.BakeSkinning(root)
        points = UsdGeom.Mesh(stage.GetPrimAtPath(f"/clip/person_{number}/body")).GetPointsAttr()
        for index in (0, 3, FRAMES - 1):
            assert np.allclose(points.Get(index), truth(body, results, number, index), atol=1e-4)
    shown = UsdGeom.Mesh(stage.GetPrimAtPath("/clip/person_2/body")).GetVisibilityAttr()
    assert [shown.Get(index) for index in (AWAY - 1, AWAY, AWAY + 1)] == ["inherited", "invisible", "inherited"]


def test_other_endings_are_refused(body, results, tmp_path):
    with pytest.raises(OutputError, match=r"must end in \.npz"):
        outputs.save(results, tmp_path / "a.fbx", body, SHOT)


READ_IN_BLENDER = """
import json, sys
import bpy, numpy as np
folder, frame = sys.argv[1], int(sys.argv[2])
answer = {}
for ending in ("glb", "usd", "bvh", "obj"):
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.fps = 25
    if ending == "glb":
        bpy.ops.import_scene.gltf(filepath=f"{folder}/a.glb")
    elif ending == "usd":
        bpy.ops.wm.usd_import(filepath=f"{folder}/a.usd")
    elif ending == "obj":
        bpy.ops.wm.obj_import(filepath=f"{folder}/a_1.obj")
        cache = bpy.context.object.modifiers.new("motion", "MESH_CACHE")
        cache.cache_format, cache.filepath, cache.frame_start = "PC2", f"{folder}/a_1.pc2", 0
    else:
        bpy.ops.import_anim.bvh(filepath=f"{folder}/a_1.bvh", global_scale=0.01, use_fps_scale=False, frame_start=1)
    scene.frame_set(frame + 1 if ending == "bvh" else frame)
    graph = bpy.context.evaluated_depsgraph_get()
    if ending == "bvh":
        rig = next(o for o in bpy.data.objects if o.type == "ARMATURE")
        names = ("Hips", "LeftLeg", "RightFoot", "LeftForeArm", "RightHand", "Head")
        answer[ending] = [list(rig.matrix_world @ rig.pose.bones[name].head) for name in names]
        continue
    meshes = [o for o in bpy.data.objects if o.type == "MESH" and len(o.data.vertices) > 10_000]
    first = min(meshes, key=lambda o: (o.parent.name if o.parent else "") + o.name)
    mesh = first.evaluated_get(graph).to_mesh()
    points = np.empty((len(mesh.vertices), 3))
    mesh.vertices.foreach_get("co", points.ravel())
    world = np.array(first.matrix_world)
    points = points @ world[:3, :3].T + world[:3, 3]
    answer[ending] = [*points.min(0).tolist(), *points.max(0).tolist(), *points.mean(0).tolist()]
print("ANSWER" + json.dumps(answer))
"""


@pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="bpy is not installed")
def test_blender_reads_all_of_them(body, results, tmp_path):
    frame = 6
    endings = ["glb", "bvh", "pc2", *(["usd"] if importlib.util.find_spec("pxr") else [])]
    for ending in endings:
        outputs.save(results, tmp_path / f"a.{ending}", body, SHOT)
    script = READ_IN_BLENDER if "usd" in endings else READ_IN_BLENDER.replace('"usd", ', "")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(frame)], capture_output=True, text=True, timeout=300
    )
    assert "ANSWER" in done.stdout, done.stdout + done.stderr
    answer = json.loads(done.stdout.split("ANSWER")[1].splitlines()[0])
    to_blender = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0.0]])
    expected = truth(body, results, 1, frame) @ to_blender.T
    bounds = np.array([*expected.min(0), *expected.max(0)])
    for ending in (e for e in answer if e != "bvh"):
        assert np.allclose(answer[ending][:6], bounds, atol=2e-3), ending
    person = results[frame].people[0]
    heads = body.posed_heads(torch.from_numpy(person.rotations)[None], torch.from_numpy(person.shape)[None])[0].numpy()
    heads = (heads + person.translation) * [1, -1, -1] @ to_blender.T
    names = ("root", "lowerleg01.L", "foot.R", "lowerarm01.L", "wrist.R", "head")
    expected = heads[[body.joint_names.index(name) for name in names]]
    assert np.linalg.norm(np.array(answer["bvh"]) - expected, axis=1).max() < 0.02


def test_a_browser_plays_the_overlay(results, body, tmp_path):
    if not browser.available():
        pytest.skip("needs chromium and chromedriver")
    clip = Clip(movie(tmp_path / "clip.mp4", frames=FRAMES))
    path = write_overlay(results, clip, body, SHOT.focal_length, tmp_path / "over.webm")
    (tmp_path / "page.html").write_text(f'<video src="{path.name}" muted></video>')
    window = browser.Browser(tmp_path)
    try:
        window.open((tmp_path / "page.html").as_uri())
        window.wait("document.querySelector('video').readyState >= 2")
        assert window.run("return document.querySelector('video').videoWidth") == 96
        assert window.run("return document.querySelector('video').duration") == pytest.approx(
            FRAMES / clip.rate, abs=0.1
        )
    finally:
        window.close()


def test_an_overlay_that_cannot_be_written_says_so(results, body, tmp_path):
    clip = Clip(movie(tmp_path / "clip.mp4", frames=2))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_overlay(results, clip, body, SHOT.focal_length, tmp_path / "file" / "over.webm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "file"]
