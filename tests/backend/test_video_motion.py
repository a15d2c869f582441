"""Along time: identities, the chosen path, smoothing, gaps."""

import itertools

import numpy as np
import pytest
from people_fixture import detections

from mega_backend.video.path import PathFinder, PathOptions
from mega_backend.video.smoothing import CUTOFFS, nearest_rotations, smooth, smooth_rotations
from mega_backend.video.tracking import Sighting, Tracker

BODY = detections(1)[0]
RED, BLUE = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])


def sighting(x: float, rng: np.random.Generator, colours=None, y: float = 240.0) -> Sighting:
    """A standing body whose hips' middle is at pixel (x, y), as a detector would see it."""
    landmarks = BODY.landmarks.copy()
    landmarks[:, :2] += [x, y] - landmarks[[23, 24], :2].mean(0) + rng.normal(0, 1.5, (33, 2))
    box = np.concatenate([landmarks[:, :2].min(0), landmarks[:, :2].max(0)])
    return Sighting(box, landmarks, BODY.landmarks_3d + rng.normal(0, 0.01, (33, 3)), colours)


def test_two_people_crossing_keep_their_identities():
    rng, tracker = np.random.default_rng(0), Tracker()
    for frame in range(60):
        seen = [sighting(100 + 7 * frame, rng), sighting(520 - 7 * frame, rng)]
        if abs(frame - 30) < 2:  # one hides the other
            seen = seen[:1]
        order = [1, 0] if frame % 2 and len(seen) == 2 else list(range(len(seen)))
        numbers = tracker.update(frame / 25, [seen[i] for i in order])
        if len(seen) == 2:
            assert [numbers[order.index(i)] for i in range(2)] == [1, 2]


def test_who_leaves_and_returns_is_the_same_and_a_stranger_is_not():
    rng, tracker = np.random.default_rng(0), Tracker()
    for frame in range(20):
        assert tracker.update(frame / 25, [sighting(100, rng, RED), sighting(400, rng, BLUE)]) == [1, 2]
    for frame in range(20, 120):
        assert tracker.update(frame / 25, [sighting(100, rng, RED)]) == [1]
    assert tracker.update(5.0, [sighting(130, rng, RED), sighting(250, rng, BLUE)]) == [1, 2]
    green = np.array([0, 1.0, 0])
    assert tracker.update(12.0, [sighting(250, rng, green)]) == [3]


def test_after_a_cut_places_say_nothing():
    rng, tracker = np.random.default_rng(0), Tracker()
    for frame in range(10):
        tracker.update(frame / 25, [sighting(100, rng, RED)])
    assert tracker.update(0.4, [sighting(100, rng, BLUE), sighting(500, rng, RED)], cut=True) == [2, 1]


def random_frames(rng, frames: int, hypotheses: int):
    return rng.random((frames, hypotheses)), 0.1 * rng.normal(size=(frames, hypotheses, 4, 3))


def cost(path, unlikeliness, joints, options, step) -> float:
    chosen = joints[np.arange(len(path)), list(path)]
    velocity = np.diff(chosen, axis=0) / step
    acceleration = np.diff(velocity, axis=0) / step
    return (
        unlikeliness[np.arange(len(path)), list(path)].sum()
        + np.square(velocity / options.speed).sum(-1).mean(-1).sum()
        + np.square(acceleration / options.acceleration).sum(-1).mean(-1).sum()
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_best_of_all(seed):
    rng, options = np.random.default_rng(seed), PathOptions(look_ahead=50)
    unlikeliness, joints = random_frames(rng, 6, 3)
    finder = PathFinder(options)
    path = [i for t in range(6) for i in finder.push(unlikeliness[t], joints[t], t / 10)] + finder.finish()
    every = itertools.product(range(3), repeat=6)
    assert tuple(path) == min(every, key=lambda p: cost(p, unlikeliness, joints, options, 0.1))


@pytest.mark.parametrize("look_ahead", [1, 2, 5])
def test_choices_come_in_time_and_once_each(look_ahead):
    rng, options = np.random.default_rng(1), PathOptions(look_ahead=look_ahead)
    unlikeliness, joints = random_frames(rng, 40, 4)
    finder, path = PathFinder(options), []
    for t in range(40):
        path += finder.push(unlikeliness[t], joints[t], t / 10)
        assert len(path) >= t - look_ahead
    path += finder.finish()
    assert len(path) == 40
    every_first = np.zeros(40, int)
    assert cost(path, unlikeliness, joints, options, 0.1) < cost(every_first, unlikeliness, joints, options, 0.1)


def test_smoothing_keeps_slow_motion_and_has_no_delay():
    times = (np.arange(400) + np.random.default_rng(0).uniform(-0.3, 0.3, 400)) / 50  # uneven
    slow, fast = np.sin(2 * np.pi * 0.3 * times), np.sin(2 * np.pi * 20 * times)
    smoothed = smooth(slow + 0.2 * fast, times, np.ones(400), CUTOFFS["light"])
    assert np.abs(smoothed - slow)[20:-20].max() < 0.06
    line = smooth(3 * times, times, np.ones(400), CUTOFFS["strong"])
    assert np.allclose(line, 3 * times, atol=1e-6)


def test_half_at_the_cut_off():
    times = np.arange(2000) / 100
    wave = np.sin(2 * np.pi * CUTOFFS["light"] * times)
    assert np.abs(smooth(wave, times, np.ones(2000), CUTOFFS["light"])[200:-200]).max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("cutoff", [None, 4.0])
def test_gaps_are_filled_from_both_sides(cutoff):
    times = np.arange(60) / 30
    weights = np.ones(60)
    weights[20:35] = 0
    values = np.where(weights > 0, times, 99.0)[:, None]
    assert np.allclose(smooth(values, times, weights, cutoff)[:, 0], times, atol=2e-3)


def test_rotations_stay_rotations():
    rng = np.random.default_rng(0)
    noisy = nearest_rotations(np.eye(3) + 0.2 * rng.normal(size=(50, 2, 3, 3)))
    result = smooth_rotations(noisy, np.arange(50) / 30, np.ones((50, 2)), 1.5)
    assert np.allclose(result @ result.swapaxes(-1, -2), np.eye(3), atol=1e-9) and (np.linalg.det(result) > 0).all()
    assert np.abs(np.diff(result, axis=0)).mean() < 0.2 * np.abs(np.diff(noisy, axis=0)).mean()
