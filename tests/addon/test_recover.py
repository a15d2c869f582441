"""Recover Mesh inside Blender: what is in the scene afterwards."""

import numpy as np
import pytest
from fake_recoverer import FakeRecoverer
from PIL import Image


def people(bpy):
    return sorted((o for o in bpy.data.objects if o.type == "MESH" and o.mega.is_person), key=lambda o: o.name)


def coordinates(points):
    values = np.empty(len(points) * 3, np.float32)
    points.foreach_get("co", values)
    return values.reshape(-1, 3)


def test_every_person_is_a_mesh_with_its_alternatives_as_shape_keys(blender, photo):
    assert blender.ops.mega.recover(filepath=str(photo), hypotheses=4, seed=3) == {"FINISHED"}
    collection = blender.data.collections["park"]
    found = people(blender)
    assert len(found) == 2 and set(found) <= set(collection.objects)
    expected = FakeRecoverer().recover(np.asarray(Image.open(photo)), hypotheses=4, seed=3)
    for person, truth in zip(found, expected.people, strict=True):
        mesh = person.data
        assert [key.name for key in mesh.shape_keys.key_blocks] == [f"Hypothesis {i}" for i in range(4)]
        assert mesh.shape_keys.use_relative
        assert all(len(polygon.vertices) == 4 for polygon in mesh.polygons)
        assert all(polygon.use_smooth for polygon in mesh.polygons)
        assert len(mesh.uv_layers) == 1 and mesh.materials[0].name == "MEGA Skin"
        assert {"head", "left_arm", "right_foot"} <= {group.name for group in person.vertex_groups}
        assert not mesh.validate()
        # Relative to the root, every key is the hypothesis in Blender's axes: x right, y away, z up.
        for index, key in enumerate(mesh.shape_keys.key_blocks):
            x, y, z = truth.vertices[index].T
            np.testing.assert_allclose(
                coordinates(key.points) + np.array(person.location), np.stack([x, z, -y], 1), atol=1e-5
            )


def test_the_camera_sees_each_vertex_where_the_picture_has_it(blender, photo):
    from bpy_extras.object_utils import world_to_camera_view

    blender.ops.mega.recover(filepath=str(photo), hypotheses=1)
    scene = blender.context.scene
    camera = scene.camera
    assert (scene.render.resolution_x, scene.render.resolution_y) == (80, 60)
    blender.context.view_layer.update()
    truth = FakeRecoverer().recover(np.asarray(Image.open(photo)), hypotheses=1)
    for person, expected in zip(people(blender), truth.people, strict=True):
        for index in range(0, len(person.data.vertices), 17):
            world = person.matrix_world @ person.data.vertices[index].co
            u, v, depth = world_to_camera_view(scene, camera, world)
            x, y, z = expected.vertices[0, index]
            pixel = truth.focal_length * np.array([x, y]) / z + (40, 30)
            np.testing.assert_allclose((u * 80, (1 - v) * 60), pixel, atol=1e-2)
            assert depth == pytest.approx(z, abs=1e-4)


def test_the_picture_is_behind_and_feet_stand_on_the_floor(blender, photo):
    blender.ops.mega.recover(filepath=str(photo), hypotheses=1)
    background = blender.context.scene.camera.data.background_images[0]
    assert background.image.name == "park.png" and background.display_depth == "BACK"
    blender.context.view_layer.update()
    lowest = min((p.matrix_world @ v.co).z for p in people(blender) for v in p.data.vertices)
    assert lowest == pytest.approx(0, abs=1e-5)


def test_what_a_person_came_from_survives_saving(blender, photo, tmp_path, extension):
    from mega_mesh_recovery.blender_addon.scene import person as scene_person

    blender.ops.mega.recover(filepath=str(photo), hypotheses=3, seed=9, steps=4, temperature=0.5)
    blender.ops.wm.save_as_mainfile(filepath=str(tmp_path / "park.blend"))
    blender.ops.wm.open_mainfile(filepath=str(tmp_path / "park.blend"))
    first = people(blender)[0]
    note = first.mega
    assert (note.seed, note.steps, note.temperature, note.model) == (9, 4, 0.5, "fake")
    assert note.picture == str(photo) and tuple(note.picture_size) == (80, 60)
    truth = FakeRecoverer().recover(np.zeros((60, 80, 3)) + 9, hypotheses=3, seed=9).people[0]
    stored = scene_person.stored(first)
    for name in ("tokens", "box", "landmarks", "landmarks_3d", "rotation", "translation", "log_probability"):
        np.testing.assert_allclose(stored[name], getattr(truth, name), rtol=1e-6)
    spread = scene_person.get_attribute(first.data, scene_person.SPREAD)
    np.testing.assert_allclose(spread, truth.spread, rtol=1e-6)


def test_the_panels_values_are_used_where_none_are_given(blender, photo):
    settings = blender.context.scene.mega
    settings.picture, settings.hypotheses, settings.seed = str(photo), 2, 11
    blender.ops.mega.recover()
    first = people(blender)[0]
    assert len(first.data.shape_keys.key_blocks) == 2 and first.mega.seed == 11


def test_several_pictures_and_a_bad_one_among_them(blender, photo, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture at all")
    Image.new("RGB", (40, 90), (50, 50, 50)).save(tmp_path / "tall.png")
    names = ["park.png", "broken.jpg", "tall.png", "gone.png"]
    result = blender.ops.mega.recover(directory=str(tmp_path), files=[{"name": name} for name in names], hypotheses=2)
    assert result == {"FINISHED"}
    assert len(people(blender)) == 4
    assert {"park", "tall"} <= {c.name for c in blender.data.collections}
    assert blender.context.active_object.name == "tall Person 1"  # the largest, not whoever came last


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "There is no file"),
        (lambda path: path.write_bytes(b"text"), "is not a picture"),
        (lambda path: Image.new("RGB", (30, 30)).save(path, "PNG"), "Nobody was found"),
    ],
)
def test_a_picture_without_result_is_an_error_with_a_sentence(blender, tmp_path, make, sentence):
    path = tmp_path / "picture.png"
    make(path)
    with pytest.raises(RuntimeError, match=sentence):
        blender.ops.mega.recover(filepath=str(path))
    assert not people(blender) and not blender.data.collections


def test_no_picture_no_backend(blender, photo, extension):
    with pytest.raises(RuntimeError, match="Choose a picture"):
        blender.ops.mega.recover()
    preferences = blender.context.preferences.addons[extension.__name__].preferences
    preferences.url = "http://127.0.0.1:1"
    with pytest.raises(RuntimeError, match="No backend answers"):
        blender.ops.mega.recover(filepath=str(photo))
    preferences.url = "http://backend.example:8765"
    with pytest.raises(RuntimeError, match="Online Access"):
        blender.ops.mega.recover(filepath=str(photo))
    preferences.mode = "LOCAL"
    with pytest.raises(RuntimeError, match="No backend is set up"):
        blender.ops.mega.recover(filepath=str(photo))


def test_alternatives_are_stepped_through_kept_and_keyframed(blender, photo):
    blender.ops.mega.recover(filepath=str(photo), hypotheses=3)
    person = blender.context.active_object
    keys = person.data.shape_keys.key_blocks

    def values():
        return [key.value for key in keys]

    assert values() == [0, 0, 0]
    blender.ops.mega.step(step=1)
    assert values() == [0, 1, 0] and person.mega.hypothesis == 1
    blender.ops.mega.step(step=-1)
    blender.ops.mega.step(step=-1)
    assert values() == [0, 0, 1]
    blender.ops.mega.keyframe()
    blender.context.scene.frame_set(20)
    person.mega.hypothesis = 1
    blender.ops.mega.keyframe()
    blender.context.scene.frame_set(1)
    assert values() == [0, 0, 1]
    blender.context.scene.frame_set(20)
    assert values() == [0, 1, 0]

    shape = coordinates(keys[1].points)
    blender.ops.mega.keep()
    assert [key.name for key in person.data.shape_keys.key_blocks] == ["Hypothesis 0"]
    assert person.data.shape_keys.animation_data is None
    np.testing.assert_array_equal(coordinates(person.data.vertices), shape)


def test_hidden_orientation_of_a_photograph_turns_the_background(blender, tmp_path):
    import math

    path = tmp_path / "sideways.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 40), (99, 99, 99)).save(path, exif=exif)
    blender.ops.mega.recover(filepath=str(path), hypotheses=1)
    scene = blender.context.scene
    assert (scene.render.resolution_x, scene.render.resolution_y) == (40, 90)
    assert abs(scene.camera.data.background_images[0].rotation) == pytest.approx(math.pi / 2)


def test_an_image_that_is_open_in_blender(blender, photo):
    image = blender.data.images.load(str(photo))
    blender.ops.mega.recover(image=image.name, hypotheses=2)
    assert len(people(blender)) == 2
    assert blender.context.scene.camera.data.background_images[0].image == image

    image.pack()
    photo.unlink()
    blender.ops.mega.recover(image=image.name, hypotheses=2)
    generated = blender.data.images.new("painted", 50, 40)
    generated.pixels[:] = [0.5] * len(generated.pixels)
    blender.ops.mega.recover(image="painted", hypotheses=2)
    assert len(people(blender)) == 6 and tuple(people(blender)[0].mega.picture_size) == (50, 40)
    with pytest.raises(RuntimeError, match="There is no image"):
        blender.ops.mega.recover(image="nothing")


def test_a_result_that_is_undone_while_it_arrives_begins_again(blender, extension):
    from mega_mesh_recovery.blender_addon.scene.origin import Origin
    from mega_mesh_recovery.blender_addon.scene.recovery import Importer

    from mega_backend import protocol

    fake = FakeRecoverer()
    result = fake.recover(np.full((60, 80, 3), 9), hypotheses=2)
    importer = Importer(blender.context.scene, protocol.topology_of(fake.body), None, Origin())
    importer.receive(protocol.scene_message(result))
    importer.receive(protocol.person_message(0, result.people[0]))
    blender.data.batch_remove([*blender.data.objects, *blender.data.collections])
    assert importer.receive(protocol.person_message(1, result.people[1])).users_collection
    assert len(people(blender)) == 1 and blender.context.scene.camera is not None


@pytest.mark.parametrize("words", [["random", "-o", "crowd.txt"], ["video", "walk.mp4", "-o", "walk.glb"]])
def test_the_command_line_writes_no_file_under_another_name(blender, words, capsys):
    from mega_mesh_recovery.blender_addon import command_line

    assert command_line.run(words) == 2
    assert "must end in .blend" in capsys.readouterr().err


def test_the_command_line_says_where_it_cannot_save(blender, tmp_path, capsys):
    from mega_mesh_recovery.blender_addon import command_line

    (tmp_path / "file").write_text("in the way")
    assert command_line.run(["random", "-n", "1", "-o", str(tmp_path / "file" / "crowd.blend")]) == 1
    assert "cannot be saved" in capsys.readouterr().err
