"""The renderer: things appear where the camera sees them, nearer ones in front, edges smooth."""

import numpy as np
import pytest
from ball import ball as unit_ball

from mega_backend import overlay

FOCAL = 500.0
BACKGROUND = np.full((200, 300, 3), 90, np.uint8)


def ball(x: float, z: float, radius: float, colour) -> overlay.Mesh:
    vertices, faces = unit_ball()
    return overlay.Mesh((vertices * radius + [x, 0, z]).astype(np.float32), faces, np.array(colour, float))


def covered(picture: np.ndarray) -> np.ndarray:
    return (picture != 90).any(axis=-1)


def test_a_ball_covers_its_disc():
    disc = covered(overlay.render([ball(0.2, 5, 0.5, (1, 1, 1))], FOCAL, BACKGROUND))
    rows, columns = np.nonzero(disc)
    assert abs(columns.mean() - (150 + FOCAL * 0.2 / 5)) < 0.7 and abs(rows.mean() - 99.5) < 0.7
    assert abs(disc.sum() - np.pi * (FOCAL * 0.5 / 5) ** 2) < 0.05 * disc.sum()


@pytest.mark.parametrize("order", [1, -1])
def test_nearer_is_in_front(order):
    meshes = [ball(0, 5, 0.4, (1, 0, 0)), ball(0, 8, 1.2, (0, 0, 1))][::order]
    picture = overlay.render(meshes, FOCAL, BACKGROUND)
    red, _, blue = picture[100, 150].astype(int)
    assert red > 2 * blue
    red, _, blue = picture[100, 150 + 60].astype(int)
    assert blue > 2 * red


def test_edges_are_smooth_and_shading_varies():
    picture = overlay.render([ball(0, 5, 0.5, (1, 1, 1))], FOCAL, BACKGROUND)
    assert len(np.unique(picture[:, :, 0])) > 40
    assert picture[75, 130, 0] > picture[125, 170, 0] + 20  # lit from above left


def test_translucent_and_offscreen():
    solid = overlay.render([ball(0, 5, 0.5, (1, 1, 1))], FOCAL, BACKGROUND)
    half = overlay.render([ball(0, 5, 0.5, (1, 1, 1))], FOCAL, BACKGROUND, opacity=0.5)
    assert abs(int(half[100, 150, 0]) - (int(solid[100, 150, 0]) + 90) / 2) <= 1
    for x, z in ((50, 5), (0, -5), (0, 0.2)):
        assert overlay.render([ball(x, z, 0.5, (1, 1, 1))], FOCAL, BACKGROUND).shape == BACKGROUND.shape
    assert np.array_equal(overlay.render([], FOCAL, BACKGROUND), BACKGROUND)


def test_overlay_of_a_result(tiny):
    recovery = tiny.random(2)
    width, height = recovery.picture_size
    picture = np.full((height, width, 3), 90, np.uint8)
    for options in ({}, {"spread": True, "opacity": 0.5}, {"longer_side": 300}):
        drawn = overlay.overlay(recovery, picture, **options)
        assert max(drawn.shape) == min(max(width, height), options.get("longer_side", overlay.LONGER_SIDE))
        x0, y0, x1, y1 = recovery.people[0].box * drawn.shape[1] / width
        inside = covered(drawn)[int(y0) : int(y1), int(x0) : int(x1)]
        assert inside.mean() > 0.03 and covered(drawn).mean() < 0.7
    with pytest.raises(ValueError, match="give the picture"):
        overlay.overlay(recovery, picture[:-1])


def test_views_and_spread_colours(tiny):
    person = tiny.random(1).people[0]
    strip = overlay.views(person.vertices[0], tiny.faces, (0, 90), side=64)
    assert strip.shape == (64, 128, 3) and (strip[:, :64] != 236).any() and (strip[:, 64:] != 236).any()
    sure, unsure = overlay.spread_colours(np.array([0.0, 1.0]))
    assert sure[2] > sure[0] and unsure[0] > unsure[2]
