"""Cameras: crop and picture agree, bodies land on their landmarks."""

import numpy as np
import pytest

from mega_backend import camera

SIZE, FOCAL = (1280, 720), 1100.0


def body(count: int = 4, joints: int = 17) -> np.ndarray:
    return np.random.default_rng(0).normal(scale=[0.3, 0.5, 0.2], size=(count, joints, 3))


def test_weak_and_full_are_inverse():
    weak = np.array([[0.8, 0.1, -0.2], [1.1, 0.0, 0.3]])
    full = camera.weak_to_full(weak, [300, 500], 250, FOCAL, SIZE)
    assert np.allclose(camera.full_to_weak(full, [300, 500], 250, FOCAL, SIZE), weak)


def test_far_away_both_cameras_agree():
    """With a very long lens, a point lands where weak perspective in the crop says."""
    focal, centre, side = 1e7, np.array([300.0, 500.0]), 250.0
    weak, points = np.array([0.8, 0.1, -0.2]), body(1)[0]
    pixels = camera.project(points + camera.weak_to_full(weak, centre, side, focal, SIZE), focal, SIZE)
    crop = weak[0] * (points[:, :2] + weak[1:])
    assert np.allclose((pixels - centre) * 2 / side, crop, atol=1e-3)


def test_view_rotation_looks_at_the_crop():
    for centre in ([640, 360], [0, 0], [1280, 100]):
        rotation = camera.view_rotation(centre, FOCAL, SIZE)
        assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.isclose(np.linalg.det(rotation), 1)
        ahead = rotation @ [0, 0, 5.0]
        assert np.allclose(camera.project(ahead, FOCAL, SIZE), centre)
    assert np.allclose(camera.view_rotation([640, 360], FOCAL, SIZE), np.eye(3))


def test_fit_finds_the_translation():
    joints, true = body(1), np.array([[0.6, -0.2, 3.5]])
    landmarks = camera.project(joints + true[:, None], FOCAL, SIZE)[0]
    found = camera.fit_translation(joints, landmarks, np.ones(17), np.array([[0, 0, 6.0]]), FOCAL, SIZE, 3.0, 30)
    assert np.abs(found - true).max() < 0.01


def test_fit_survives_missing_and_wrong_landmarks():
    joints, true = body(1), np.array([[0.6, -0.2, 3.5]])
    landmarks = camera.project(joints + true[:, None], FOCAL, SIZE)[0]
    weights = np.ones(17)
    weights[:6] = 0
    landmarks[:6] = 1e4
    landmarks[6] += 200
    found = camera.fit_translation(joints, landmarks, weights, true + 0.2, FOCAL, SIZE, 3.0, 30)
    assert np.abs(found - true).max() < 0.1


def test_fit_never_loses_the_person():
    """Nothing to hold on to: the start is kept; a start behind the camera: everything ends up before it."""
    joints = body()
    start = np.array([[0.1, 0.2, 4.0]] * 4)
    landmarks = np.zeros((17, 2))
    assert np.allclose(camera.fit_translation(joints, landmarks, np.zeros(17), start, FOCAL, SIZE, 3.0), start)
    found = camera.fit_translation(joints, landmarks, np.ones(17), start * [1, 1, -1], FOCAL, SIZE, 3.0)
    assert (found[:, 2] + joints[..., 2].min(1) >= camera.NEAR - 1e-9).all() and np.isfinite(found).all()


@pytest.mark.parametrize("count", [1, 5])
def test_fit_treats_each_hypothesis_alone(count):
    joints = body(count)
    start = np.tile([0.0, 0.0, 5.0], (count, 1))
    landmarks = camera.project(joints[0] + [0.2, 0.1, 4.0], FOCAL, SIZE)
    together = camera.fit_translation(joints, landmarks, np.ones(17), start, FOCAL, SIZE, 5.0)
    for row in range(count):
        alone = camera.fit_translation(joints[row : row + 1], landmarks, np.ones(17), start[:1], FOCAL, SIZE, 5.0)
        assert np.allclose(alone[0], together[row])
