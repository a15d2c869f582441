"""What can be done with recovered people: uncertainty, locks and re-rolls, random people."""

from itertools import pairwise

import numpy as np
import pytest


@pytest.fixture
def person(blender, photo):
    blender.ops.mega.recover(filepath=str(photo), hypotheses=4, seed=1)
    return blender.context.active_object


def keys(person):
    values = []
    for key in person.data.shape_keys.key_blocks:
        points = np.empty(len(key.points) * 3, np.float32)
        key.points.foreach_get("co", points)
        values.append(points.reshape(-1, 3))
    return np.stack(values)


def test_uncertainty_is_a_colour_attribute_from_blue_to_red(blender, person):
    from mega_mesh_recovery.blender_addon.scene import person as scene_person
    from mega_mesh_recovery.blender_addon.scene import uncertainty

    blender.ops.mega.show_uncertainty(show=True)
    assert blender.context.scene.mega.show_uncertainty
    layer = person.data.color_attributes["Uncertainty"]
    assert person.data.color_attributes.active_color.name == "Uncertainty" and layer.domain == "POINT"
    spread = scene_person.get_attribute(person.data, scene_person.SPREAD)
    colours = np.empty(len(spread) * 4, np.float32)
    layer.data.foreach_get("color_srgb", colours)
    np.testing.assert_allclose(colours.reshape(-1, 4), uncertainty.colours(spread), atol=1 / 250)
    blue, red = uncertainty.colours(np.array([0.0, 1.0]))
    assert blue[2] > blue[0] and red[0] > red[2]
    blender.ops.mega.show_uncertainty(show=False)
    assert not blender.context.scene.mega.show_uncertainty


def test_a_re_roll_sends_what_is_shown_and_replaces_the_alternatives(blender, person, backend_app):
    person.mega.hypothesis = 2
    person.mega.lock_left_leg = person.mega.lock_head = True
    place, before = tuple(person.location), keys(person)
    person.location.x += 5  # moving the object must not matter
    backend_app.asked.clear()
    assert blender.ops.mega.resample(hypotheses=3) == {"FINISHED"}
    (asked,) = backend_app.asked
    assert asked["keep"] == ["head", "left_leg", "left_foot"] and asked["seed"] == 2
    shape = before[2] + np.array(place)
    np.testing.assert_allclose(asked["vertices"][0], np.stack([shape[:, 0], -shape[:, 2], shape[:, 1]], 1), atol=1e-5)
    after = keys(person)
    assert after.shape[0] == 3 and person.mega.hypothesis == 0 and person.mega.seed == 2
    assert not np.allclose(after[1], before[1])
    assert person.location.x == pytest.approx(place[0] + 5)
    np.testing.assert_allclose(after[0], before[0], atol=1e-5)  # the fake's hypothesis 0 is always the same


def test_a_re_roll_keeps_the_keyframes(blender, person):
    """The body morphs between the new alternatives where it did between those of before."""
    scene = blender.context.scene
    for frame, shown in ((1, 1), (11, 3)):
        scene.frame_set(frame)
        person.mega.hypothesis = shown
        blender.ops.mega.keyframe()
    before = keys(person)
    blender.ops.mega.resample(seed=9, hypotheses=4)
    assert not np.allclose(keys(person)[1:], before[1:])
    for frame, shown in ((1, 1), (11, 3)):
        scene.frame_set(frame)
        assert person.mega.hypothesis == shown
    scene.frame_set(6)
    assert [round(key.value, 2) for key in person.data.shape_keys.key_blocks] == [0, 0.5, 0, 0.5]


def test_what_is_shown_follows_the_curves(blender, person):
    from mega_mesh_recovery.blender_addon.scene import hypotheses

    blocks = person.data.shape_keys.key_blocks
    blocks[2].value = 1.0
    assert person.mega.hypothesis == 2 and not hypotheses.is_mixed(person)
    blocks[2].value, blocks[1].value = 0.3, 0.2
    assert person.mega.hypothesis == 0 and hypotheses.is_mixed(person)
    blender.ops.mega.step(step=-1)
    assert person.mega.hypothesis == 3 and not hypotheses.is_mixed(person)
    person.mega.hypothesis = 99
    assert person.mega.hypothesis == 3  # there are no more


def test_the_views_show_what_the_scene_says_after_undo_too(blender, person):
    from mega_mesh_recovery.blender_addon.scene import shading

    views = [area for area in blender.context.window.screen.areas if area.type == "VIEW_3D"]
    colours = [area.spaces.active.shading for area in views]
    if not colours:
        pytest.skip("this Blender starts without a 3D view")
    colours[0].type, colours[0].color_type = "SOLID", "OBJECT"
    blender.ops.mega.show_uncertainty(show=True)
    assert colours[0].color_type == "VERTEX"
    blender.context.scene.mega.show_uncertainty = False  # as undo does
    for handler in blender.app.handlers.undo_post:
        if handler.__module__ == shading.__name__:
            handler(blender.context.scene)
    assert colours[0].color_type == "OBJECT"


def test_a_re_roll_after_the_file_was_reopened(blender, person, tmp_path, backend_app):
    name = person.name
    blender.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"))
    blender.ops.wm.open_mainfile(filepath=str(tmp_path / "a.blend"))
    person = blender.data.objects[name]
    blender.context.view_layer.objects.active = person
    backend_app.asked.clear()
    blender.ops.mega.resample(keep={"torso"}, seed=77)
    assert backend_app.asked[0]["keep"] == ["torso"] and person.mega.seed == 77


def test_only_people_can_be_re_rolled(blender, person):
    del person["mega_tokens"]
    with pytest.raises(RuntimeError, match="recover it from the picture again"):
        blender.ops.mega.resample()
    mesh = blender.data.objects.new("Other", blender.data.meshes.new("Other"))
    blender.context.scene.collection.objects.link(mesh)
    blender.context.view_layer.objects.active = mesh
    assert not blender.ops.mega.resample.poll()


def test_random_people_stand_in_a_grid_on_the_floor(blender):
    blender.ops.mega.random(count=5, seed=3, arrange="GRID")
    found = [o for o in blender.data.collections["Random People"].objects]
    blender.context.view_layer.update()
    assert len(found) == 5 and len({(round(o.location.x, 3), round(o.location.y, 3)) for o in found}) == 5
    for person in found:
        assert min((person.matrix_world @ v.co).z for v in person.data.vertices) == pytest.approx(0, abs=1e-5)


def test_random_people_as_an_animation(blender):
    blender.ops.mega.random(count=4, seed=3, arrange="ANIMATION")
    (person,) = blender.data.collections["Random People"].objects
    scene = blender.context.scene
    blocks = person.data.shape_keys.key_blocks
    assert len(blocks) == 4
    for index in range(4):
        scene.frame_set(scene.frame_start + 24 * index)
        assert [key.value for key in blocks[1:]] == [float(number == index) for number in range(1, 4)]


def test_random_people_with_the_locked_parts_of_the_active_one(blender, person, backend_app):
    person.mega.lock_torso = True
    backend_app.asked.clear()
    blender.ops.mega.random(count=3, keep_locked=True)
    assert backend_app.asked[0]["keep"] == ["torso"] and not backend_app.asked[0]["landmarks"].any()
    assert len(blender.data.collections["Random People"].objects) == 3


def test_results_stand_beside_each_other(blender, photo):
    for _ in range(3):
        blender.ops.mega.recover(filepath=str(photo), hypotheses=1)
    blender.context.view_layer.update()
    spans = []
    for collection in blender.data.collections:
        xs = [(o.matrix_world @ v.co).x for o in collection.objects if o.type == "MESH" for v in o.data.vertices]
        spans.append((min(xs), max(xs)))
    spans.sort()
    assert all(left[1] < right[0] for left, right in pairwise(spans))


def test_what_goes_back_to_the_backend_is_what_came_from_it(blender, person, tmp_path):
    """Also after a re-roll, and after the file was saved and opened."""
    from fake_recoverer import FakeRecoverer
    from mega_mesh_recovery.blender_addon.scene import person as scene_person

    found = FakeRecoverer().recover(np.full((60, 80, 3), 9), hypotheses=3, seed=12).people[1]
    name = person.name
    scene_person.replace(person, vars(found))
    blender.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"))
    blender.ops.wm.open_mainfile(filepath=str(tmp_path / "a.blend"))
    state = scene_person.state(blender.data.objects[name], 2)
    for each in ("tokens", "log_probability", "rotation", "translation", "vertices"):
        np.testing.assert_allclose(state[each], getattr(found, each)[2:3], atol=1e-5)
    for each in ("box", "landmarks", "landmarks_3d"):
        np.testing.assert_allclose(state[each], getattr(found, each))
