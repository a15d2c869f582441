"""Find People and choose: what scripts do; the same by hand is in test_real_blender.py."""

import numpy as np
import pytest


def people(bpy):
    return [o for o in bpy.data.objects if o.type == "MESH" and o.mega.is_person]


def test_those_who_are_found_can_be_chosen_from(blender, photo):
    settings = blender.context.scene.mega
    assert blender.ops.mega.find_people(filepath=str(photo)) == {"FINISHED"}
    assert settings.picture == str(photo) and settings.source == "FILE" and tuple(settings.found_size) == (80, 60)
    np.testing.assert_allclose([person.box for person in settings.found], [(8, 6, 36, 57), (44, 6, 72, 57)], rtol=1e-6)
    assert not people(blender)
    settings.found[0].chosen = False
    blender.ops.mega.recover(hypotheses=2)
    assert len(people(blender)) == 1
    blender.ops.mega.recover(hypotheses=2, everybody=True)
    assert len(people(blender)) == 3


def test_who_was_found_survives_saving_and_undo(blender, photo, tmp_path):
    blender.ops.mega.find_people(filepath=str(photo))
    blender.context.scene.mega.found[1].chosen = False
    blender.ops.wm.save_as_mainfile(filepath=str(tmp_path / "a.blend"))
    blender.ops.wm.open_mainfile(filepath=str(tmp_path / "a.blend"))
    from mega_mesh_recovery.blender_addon.scene import found

    chosen = found.chosen(blender.context.scene.mega)
    assert chosen["boxes"].shape == (1, 4) and chosen["landmarks"].shape == chosen["landmarks_3d"].shape == (1, 33, 3)
    np.testing.assert_array_equal(chosen["landmarks"], np.full((1, 33, 3), 0.5, np.float32))


def test_a_click_on_the_head_above_the_landmarks_still_is_a_click_on_the_person(blender, photo):
    from mega_mesh_recovery.blender_addon.scene import found

    settings = blender.context.scene.mega
    blender.ops.mega.find_people(filepath=str(photo))
    assert (found.at(settings, 20, 30), found.at(settings, 60, 30), found.at(settings, 40, 30)) == (0, 1, None)
    assert found.at(settings, 20, 3) == 0 and found.at(settings, 20, 1) is None
    assert (found.shown(settings) >= 0).all() and (found.shown(settings) <= (80, 60, 80, 60)).all()


def test_boxes_by_hand_add_people(blender, photo):
    settings = blender.context.scene.mega
    settings.picture = str(photo)
    assert blender.ops.mega.add_box(box=(10, 12, 40, 50)) == {"FINISHED"}
    assert len(settings.found) == 1 and settings.found[0].drawn and settings.found[0].chosen
    with pytest.raises(RuntimeError, match="there already"):
        blender.ops.mega.add_box(box=(11, 12, 40, 50))
    with pytest.raises(RuntimeError, match="empty"):
        blender.ops.mega.add_box(box=(40, 12, 10, 50))
    with pytest.raises(RuntimeError, match="obody is recognised"):
        blender.ops.mega.add_box(box=(0, 0, 3, 3))
    assert len(settings.found) == 1
    blender.ops.mega.recover(hypotheses=1)
    assert len(people(blender)) == 1
    blender.ops.mega.remove_box(index=0)
    assert not len(settings.found)


def test_those_of_one_picture_are_not_those_of_another(blender, photo, tmp_path):
    from PIL import Image

    other = tmp_path / "other.png"
    Image.new("RGB", (80, 60), (90, 90, 90)).save(other)
    settings = blender.context.scene.mega
    blender.ops.mega.find_people(filepath=str(photo))
    settings.found[0].chosen = False
    blender.ops.mega.recover(filepath=str(other), hypotheses=1)
    assert len(people(blender)) == 2
    with pytest.raises(RuntimeError, match="another picture"):
        blender.ops.mega.add_box(filepath=str(other), box=(1, 1, 30, 30))
    blender.ops.mega.forget_people()
    assert not len(settings.found) and not blender.ops.mega.forget_people.poll()


def test_nobody_chosen_is_an_error_that_says_so(blender, photo):
    blender.ops.mega.find_people(filepath=str(photo))
    for person in blender.context.scene.mega.found:
        person.chosen = False
    with pytest.raises(RuntimeError, match="None of the found people is chosen"):
        blender.ops.mega.recover()


def test_nobody_found_is_no_error_because_boxes_can_be_drawn(blender, tmp_path):
    from PIL import Image

    path = tmp_path / "empty.png"
    Image.new("RGB", (80, 60)).save(path)
    assert blender.ops.mega.find_people(filepath=str(path)) == {"FINISHED"}
    assert blender.context.scene.mega.found_in == str(path)
    blender.ops.mega.add_box(box=(10, 10, 40, 50))
    assert len(blender.context.scene.mega.found) == 1


def test_the_panels_image_is_recovered(blender, photo):
    """An image that is open in Blender, as the panel's source: packed, painted, or on disk."""
    settings = blender.context.scene.mega
    settings.source = "IMAGE"
    with pytest.raises(RuntimeError, match="Choose an image"):
        blender.ops.mega.recover()
    settings.image = blender.data.images.load(str(photo))
    settings.image.pack()
    photo.unlink()
    blender.ops.mega.find_people()
    assert settings.found_in == "image:park.png"
    settings.found[1].chosen = False
    blender.ops.mega.recover(hypotheses=1)
    assert len(people(blender)) == 1
    assert blender.context.scene.camera.data.background_images[0].image == settings.image
    grey = blender.data.images.new("grey", 50, 40)
    grey.pixels.foreach_set(np.full(50 * 40 * 4, 0.5, np.float32))
    settings.image = grey
    blender.ops.mega.recover(hypotheses=1)
    assert len(people(blender)) == 3


def test_a_drop_is_what_the_file_handler_calls(blender, photo, tmp_path):
    from PIL import Image

    handler = blender.types.MEGA_FH_pictures
    assert handler.bl_import_operator == "mega.recover" and ".png" in handler.bl_file_extensions.split(";")
    Image.new("RGB", (80, 60), (90, 90, 90)).save(tmp_path / "other.png")
    files = [{"name": "park.png"}, {"name": "other.png"}]
    blender.ops.mega.recover(directory=str(tmp_path), files=files, hypotheses=1)
    assert {"park", "other"} <= {collection.name for collection in blender.data.collections}


@pytest.mark.parametrize("number", range(1, 9))
def test_orientations_of_points_agree_with_those_of_pictures(extension, number):
    """A mark in the upright picture lies in the stored one where `stored` says."""
    from mega_mesh_recovery.blender_addon.scene import exif
    from PIL import Image, ImageOps

    upright = Image.new("L", (40, 30))
    upright.putpixel((31, 4), 255)
    inverse = {6: 8, 8: 6}.get(number, number)
    turned = upright.copy()
    turned.getexif()[0x0112] = inverse
    stored = ImageOps.exif_transpose(turned)  # as a camera held in that way would store it
    y, x = np.argwhere(np.asarray(stored))[0]
    u, v = exif.stored(number, 31.5 / 40, 4.5 / 30)
    assert (u * stored.width, v * stored.height) == pytest.approx((x + 0.5, y + 0.5))
    assert exif.upright(number, u, v) == pytest.approx((31.5 / 40, 4.5 / 30))
