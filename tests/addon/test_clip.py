"""Recover Clip and Add Armature inside Blender: what moves, when, and how exactly."""

import importlib
import socket
import struct
import threading

import numpy as np
import pytest
import uvicorn
from fake_motion import FakeMotion
from movies import SIZE, movie, sequence

from mega_backend import server
from mega_backend.service.video import moment

FRAMES = 12


@pytest.fixture(scope="module")
def motion():
    return FakeMotion()


@pytest.fixture(scope="module")
def motion_url(motion):
    listener = socket.create_server(("127.0.0.1", 0))
    instance = uvicorn.Server(uvicorn.Config(server.create_app(motion), log_level="warning"))
    thread = threading.Thread(target=instance.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    instance.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture
def bpy(blender, extension, motion_url):
    """bpy connected to a backend that makes motion up."""
    blender.context.preferences.addons[extension.__name__].preferences.url = motion_url
    return blender


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return movie(tmp_path_factory.mktemp("film") / "walk.mp4", FRAMES)


def expected(motion, track, index):
    """Vertices (V,3) in Blender's axes, relative to the clip's root."""
    sent = moment(motion.body, index, 0.0, [motion._person(track, index)], True).vertices[0]
    return np.stack([sent[:, 0], sent[:, 2], -sent[:, 1]], 1)


def seen(bpy, name, frame):
    """Vertices (V,3) of an object as modifiers and keys leave them at a frame, relative to the clip's root."""
    scene = bpy.context.scene
    scene.frame_set(int(frame), subframe=frame - int(frame))
    made = bpy.data.objects[name]
    evaluated = made.evaluated_get(bpy.context.evaluated_depsgraph_get())
    mesh = evaluated.to_mesh()
    values = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", values)
    evaluated.to_mesh_clear()
    root = next(o for o in bpy.data.objects if o.type == "EMPTY")
    matrix = np.array(root.matrix_world.inverted() @ made.matrix_world)
    return values.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]


def hidden(bpy, name, frame):
    bpy.context.scene.frame_set(frame)
    made = bpy.data.objects[name]
    assert made.hide_render == made.hide_viewport
    return made.hide_render


def curves(owner):
    """The animation curves of a datablock, whatever kind of action it has."""
    action = owner.animation_data.action
    if not hasattr(action, "slots"):
        return list(action.fcurves)
    strip = action.layers[0].strips[0]
    return list(strip.channelbag(owner.animation_data.action_slot).fcurves)


def test_every_person_moves_by_absolute_keys_on_one_curve(bpy, film, motion):
    assert bpy.ops.mega.recover_clip(filepath=str(film), output="MESH") == {"FINISHED"}
    scene, collection = bpy.context.scene, bpy.data.collections["walk"]
    people = sorted(o.name for o in collection.objects if o.type == "MESH")
    assert people == ["walk Person 1", "walk Person 2"]
    keys = bpy.data.objects[people[0]].data.shape_keys
    assert not keys.use_relative and len(keys.key_blocks) == FRAMES
    assert [key.frame for key in keys.key_blocks] == pytest.approx(range(FRAMES))
    (curve,) = curves(keys)
    assert curve.data_path == "eval_time" and len(curve.keyframe_points) == 2
    assert (scene.render.fps, round(scene.render.fps / scene.render.fps_base, 3)) == (12, 12.5)
    assert (scene.frame_start, scene.frame_end) == (1, FRAMES)
    for frame in (1, 4, 9, FRAMES):
        np.testing.assert_allclose(seen(bpy, people[0], frame), expected(motion, 1, frame - 1), atol=1e-4)
    between = (expected(motion, 1, 3) + expected(motion, 1, 4)) / 2
    np.testing.assert_allclose(seen(bpy, people[0], 4.5), between, atol=1e-4)


def test_alembic_moves_as_the_scene_does(bpy, film, extension, tmp_path):
    """Written out, and read into an empty scene."""
    bpy.ops.mega.recover_clip(filepath=str(film), output="MESH")
    command_line = importlib.import_module(f"{extension.__name__}.blender_addon.command_line_clip")
    before = [world(bpy, frame) for frame in (1, 9)]
    command_line.write_alembic(tmp_path / "walk.abc")
    rate = bpy.context.scene.render.fps, bpy.context.scene.render.fps_base
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=False)
    bpy.context.scene.render.fps, bpy.context.scene.render.fps_base = rate
    bpy.ops.wm.alembic_import(filepath=str(tmp_path / "walk.abc"), as_background_job=False)
    after = [world(bpy, frame) for frame in (1, 9)]
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert np.linalg.norm(after[1] - after[0], axis=-1).mean() > 0.01


def world(bpy, frame):
    """Vertices (V,3) of the first person in the world at a frame."""
    bpy.context.scene.frame_set(frame)
    made = next(each for each in bpy.data.objects if each.type == "MESH" and "Person_1" in each.name.replace(" ", "_"))
    evaluated = made.evaluated_get(bpy.context.evaluated_depsgraph_get())
    return np.array([evaluated.matrix_world @ vertex.co for vertex in evaluated.data.vertices])


def test_somebody_who_is_away_is_hidden(bpy, film, motion):
    bpy.ops.mega.recover_clip(filepath=str(film), output="BOTH")
    for name in ("walk Person 2", "walk Person 2 Rig"):
        assert [hidden(bpy, name, frame) for frame in range(1, FRAMES + 1)] == [
            frame < 3 or frame > FRAMES - 2 for frame in range(1, FRAMES + 1)
        ]
    assert not any(hidden(bpy, "walk Person 1", frame) for frame in range(1, FRAMES + 1))
    np.testing.assert_allclose(seen(bpy, "walk Person 2", 5), expected(motion, 2, 4), atol=1e-4)


def test_the_camera_sees_the_people_where_the_clip_has_them(bpy, film, motion):
    from bpy_extras.object_utils import world_to_camera_view
    from mathutils import Vector

    bpy.ops.mega.recover_clip(filepath=str(film))
    scene = bpy.context.scene
    assert (scene.render.resolution_x, scene.render.resolution_y) == SIZE
    root = next(o for o in bpy.data.objects if o.type == "EMPTY")
    points = seen(bpy, "walk Person 1", 6)
    focal = scene.camera.data.lens / scene.camera.data.sensor_width * SIZE[0]
    for index in range(0, len(points), 999):
        u, v, _ = world_to_camera_view(scene, scene.camera, root.matrix_world @ Vector(points[index]))
        x, z, y = expected(motion, 1, 5)[index] * (1, 1, -1)
        pixel = focal * np.array([x, y]) / z + np.array(SIZE) / 2
        np.testing.assert_allclose((u * SIZE[0], (1 - v) * SIZE[1]), pixel, atol=2e-2)
    feet = [seen(bpy, name, frame)[:, 2].min() for name, frame in (("walk Person 1", 1), ("walk Person 2", 3))]
    assert root.location.z + min(feet) == pytest.approx(0, abs=1e-4)
    background = scene.camera.data.background_images[0]
    assert background.image.source == "MOVIE" and background.display_depth == "BACK"
    user = background.image_user
    assert (user.frame_start, user.frame_offset, user.frame_duration) == (1, 0, FRAMES)


def test_an_armature_moves_its_mesh_as_it_was_recovered(bpy, film, motion):
    assert bpy.ops.mega.recover_clip(filepath=str(film), output="ARMATURE", start=3, end=11, step=2) == {"FINISHED"}
    scene = bpy.context.scene
    assert (scene.frame_start, scene.frame_end) == (1, 9)
    armature = bpy.data.objects["walk Person 1 Rig"]
    names = {bone.name for bone in armature.data.bones}
    assert {
        "Hips",
        "Spine",
        "LeftUpLeg",
        "LeftLeg",
        "LeftFoot",
        "RightArm",
        "RightForeArm",
        "RightHand",
        "Head",
    } <= names
    assert armature.data.bones["LeftLeg"].parent.name == "LeftUpLegTwist"
    rest = np.array([bone.head_local for bone in armature.data.bones])
    assert armature.data.bones["Head"].head_local.z > 1.2 and abs(rest[:, 0].mean()) < 0.01
    rotation = [c for c in curves(armature) if c.data_path == 'pose.bones["LeftArm"].rotation_quaternion']
    assert len(rotation) == 4 and all(len(c.keyframe_points) == 5 for c in rotation)
    for track, frame, index in ((1, 1, 2), (1, 3, 4), (1, 9, 10), (2, 5, 6)):
        skinned = seen(bpy, f"walk Person {track} Skinned", frame)
        away = np.linalg.norm(skinned - expected(motion, track, index), axis=1)
        assert away.max() < 2e-3, (frame, track)
    assert bpy.context.active_object.mega_motion.is_tracked


def test_a_long_clip_follows_a_point_cache(bpy, film, motion, tmp_path):
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    assert bpy.ops.mega.recover_clip(filepath=str(film), storage="CACHE", step=2) == {"FINISHED"}
    caches = sorted(path.name for path in tmp_path.glob("*.pc2"))
    assert caches == ["scene_walk_Person_1.pc2", "scene_walk_Person_2.pc2"]
    head = struct.unpack("<12siiffi", (tmp_path / caches[0]).read_bytes()[:32])
    assert head[:3] == (b"POINTCACHE2\0", 1, motion.body.vertex_count) and head[5] == 6
    assert bpy.data.objects["walk Person 1"].data.shape_keys is None
    for frame in (1, 5, 11):
        np.testing.assert_allclose(seen(bpy, "walk Person 1", frame), expected(motion, 1, frame - 1), atol=1e-4)
    np.testing.assert_allclose(seen(bpy, "walk Person 2", 5), expected(motion, 2, 4), atol=1e-4)


def test_the_scenes_frame_rate_can_stay(bpy, film, motion):
    scene = bpy.context.scene
    scene.render.fps, scene.render.fps_base = 25, 1.0
    bpy.ops.mega.recover_clip(filepath=str(film), match="CLIP", set_range=False)
    assert (scene.render.fps, scene.frame_start, scene.frame_end) == (25, 1, 250)
    for frame, index in ((1, 0), (3, 1), (11, 5)):
        np.testing.assert_allclose(seen(bpy, "walk Person 1", frame), expected(motion, 1, index), atol=1e-3)
    user = scene.camera.data.background_images[0].image_user
    shown = []
    for frame in (1, 3, 11, 21):
        scene.frame_set(frame)
        shown.append(frame - user.frame_start + user.frame_offset)
    np.testing.assert_allclose(shown, [0, 1, 5, 10], atol=1)


def test_a_numbered_sequence_from_one_of_its_pictures(bpy, motion, tmp_path):
    paths = sequence(tmp_path / "shots", 6)
    paths[3].unlink()
    assert bpy.ops.mega.recover_clip(filepath=str(paths[2]), start=2, rate=10.0) == {"FINISHED"}
    keys = bpy.data.objects["shot Person 1"].data.shape_keys
    assert [key.frame for key in keys.key_blocks] == pytest.approx([0, 1, 3, 4])
    np.testing.assert_allclose(seen(bpy, "shot Person 1", 1), expected(motion, 1, 0), atol=1e-4)
    background = bpy.context.scene.camera.data.background_images[0]
    assert background.image.source == "SEQUENCE"
    assert background.image_user.frame_offset == 101 and bpy.context.scene.render.fps == 10


def test_a_clip_of_the_movie_clip_editor(bpy, film, motion):
    clip = bpy.data.movieclips.load(str(film))
    clip.frame_start = 100
    bpy.ops.mega.recover_clip(clip=clip.name, start=3)
    background = bpy.context.scene.camera.data.background_images[0]
    assert background.source == "MOVIE_CLIP" and background.clip == clip
    assert bpy.context.scene.frame_start == 102
    np.testing.assert_allclose(seen(bpy, "walk Person 1", 104), expected(motion, 1, 4), atol=1e-4)


def test_movies_that_are_dropped_go_to_the_operator(bpy, film, extension):
    """Through the operator that Blender calls, with what it gives: folder and names."""
    handler = bpy.types.MEGA_FH_clips
    assert handler.bl_import_operator == "mega.recover_clip" and ".mp4" in handler.bl_file_extensions.split(";")
    done = bpy.ops.mega.recover_clip(directory=str(film.parent), files=[{"name": film.name}])
    assert done == {"FINISHED"} and "walk Person 2" in bpy.data.objects


def test_two_clips_stand_side_by_side(bpy, film):
    for _ in range(2):
        bpy.ops.mega.recover_clip(filepath=str(film), end=2)
    first, second = sorted(o.location.x for o in bpy.data.objects if o.type == "EMPTY")
    assert second - first > 1 and bpy.context.scene.camera.name == "walk Camera.001"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: {}, "Choose a clip"),
        (lambda path: {"filepath": str(path / "gone.mp4")}, "There is no file"),
        (lambda path: {"clip": "nothing"}, "There is no movie clip"),
        (lambda path: {"filepath": str(path)}, "no pictures in the folder"),
        (lambda path: (path / "a.mp4").write_text("text") and {"filepath": str(path / "a.mp4")}, "convert it to MP4"),
        (lambda path: {"filepath": str(movie(path / "b.mp4", 4)), "start": 9}, "start before"),
        (lambda path: {"filepath": str(movie(path / "b.mp4", 4)), "start": 3, "end": 2}, "lies before"),
    ],
)
def test_what_is_no_clip_is_an_error_with_a_sentence(bpy, tmp_path, make, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        bpy.ops.mega.recover_clip(**make(tmp_path))
    assert not bpy.data.collections


def test_a_recovered_person_gets_an_armature(bpy, photo, motion):
    bpy.ops.mega.recover(filepath=str(photo), hypotheses=3, seed=1)
    person = bpy.context.active_object
    person.mega.hypothesis = 1
    person.location.x += 0.4
    bpy.context.view_layer.update()
    before = seen(bpy, person.name, 1)
    assert bpy.ops.mega.add_armature() == {"FINISHED"}
    armature = bpy.context.active_object
    assert armature.type == "ARMATURE" and armature.animation_data is None and person.hide_render
    away = np.linalg.norm(seen(bpy, f"{person.name} Skinned", 1) - before, axis=1)
    assert away.mean() < 0.01
    assert armature.parent == person.parent and armature.users_collection == person.users_collection


def many(bpy, motion):
    """An importer of a clip of one person, as a mesh and an armature."""
    from mega_mesh_recovery.blender_addon.scene.clip import ClipImporter, Options
    from mega_mesh_recovery.blender_addon.scene.movies import Source

    from mega_backend import protocol, protocol_motion
    from mega_backend.protocol_motion import Build, ClipFacts

    facts = ClipFacts((640, 480), 800.0, 25.0, 60)
    rig, topology = protocol_motion.rig_topology(motion.body), protocol.topology_of(motion.body)
    source = Source("many", pictures=("a.png",), numbers=(0,))
    options = Options(output="BOTH")
    importer = ClipImporter(bpy.context.scene, source, topology, rig, facts, 1, options)
    vertices, heads = (part[0].numpy() for part in motion.body.rest(motion.body.shape_bank[:1]))
    importer.build(Build(1, vertices, heads))
    importer._set_timeline = lambda: None  # the picture does not exist
    return importer


def test_what_is_undone_while_it_arrives_begins_again(bpy, motion, extension):
    importer = many(bpy, motion)
    first, second = (moment(motion.body, index, index / 25, [motion._person(1, index)], True) for index in (0, 1))
    importer.add(first)
    bpy.data.batch_remove([*bpy.data.objects, *bpy.data.collections])
    importer.add(second)
    assert len(bpy.data.objects["many Person 1"].data.shape_keys.key_blocks) == 1
    bpy.data.batch_remove([*bpy.data.objects, *bpy.data.collections])
    assert not list(importer.finish(bpy.context)) and not bpy.data.objects


def test_frames_are_put_in_in_short_steps(bpy, motion, extension, capsys):
    """Each frame and each step of the end takes the main thread for a few milliseconds; the bound leaves room."""
    import time

    importer, times = many(bpy, motion), []

    def timed(step):
        began = time.thread_time()
        result = step()
        times.append(time.thread_time() - began)
        return result

    for index in range(60):
        one = moment(motion.body, index, index / 25, [motion._person(1, index)], True)
        timed(lambda one=one: importer.add(one))
    frames = len(times)
    steps = importer.finish(bpy.context)
    while timed(lambda: next(steps, importer)) is not importer:
        continue
    with capsys.disabled():
        print(f"\nframe {1000 * np.median(times[:frames]):.1f} ms, longest {1000 * max(times):.1f} ms, ", end="")
        print(f"end {1000 * sum(times[frames:]):.0f} ms in {len(times) - frames} steps")
    assert max(times) < 0.2
