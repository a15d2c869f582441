"""Along time: identities, the chosen path, smoothing, gaps."""

import itertools
import threading
import time

import numpy as np
import pytest
from people_fixture import detections
from scipy.spatial.transform import Rotation

from mega_backend import Cancelled
from mega_backend.video import placing
from mega_backend.video.clips import Frame
from mega_backend.video.path import PathFinder, PathOptions
from mega_backend.video.recover import _watched
from mega_backend.video.smoothing import CUTOFFS, nearest_rotations, smooth, smooth_rotations
from mega_backend.video.tracking import Sighting, Tracker
from mega_backend.video.trajectory import believed, through

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


@pytest.mark.parametrize("colours", [None, np.array([0.05, 0.5, 0.52])])
def test_nobody_is_recognised_by_build_or_black_clothes(colours):
    rng, tracker = np.random.default_rng(0), Tracker()
    for frame in range(20):
        assert tracker.update(frame / 25, [sighting(100, rng, colours)]) == [1]
    assert tracker.update(1.5, [sighting(110, rng, colours)]) == [1], "the place still counts"
    assert tracker.update(9.0, [sighting(110, rng, colours)]) == [2]


def test_a_glimpse_is_nobody_to_come_back():
    rng, tracker = np.random.default_rng(0), Tracker()
    assert tracker.update(0.0, [sighting(100, rng, RED)]) == [1]
    assert tracker.update(9.0, [sighting(110, rng, RED)]) == [2]


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


def test_who_is_taken_for_a_front_for_a_moment_is_not_believed():
    """A back that slowly turns, first and once in between seen from the wrong side; an arm that swings all the time."""
    times = np.arange(30) / 10
    heading, swing = 0.4 * times, 0.6 * np.sin(2 * np.pi * times)
    odd = np.isin(np.arange(30), [0, 1, 15])
    trunk = Rotation.from_rotvec(np.outer(heading + np.pi * odd, [0, 1, 0])).as_matrix()
    arm = Rotation.from_rotvec(np.outer(swing, [1, 0, 0])).as_matrix()
    belief = believed(np.stack([trunk, arm], axis=1), times, np.ones((30, 2)), CUTOFFS["light"])
    assert (belief[odd] < 0.15).all(), "nor in any limb"
    assert (belief[~odd] > 0.6).all()
    assert (believed(trunk[:, None], times, np.ones((30, 1)), None) == 1).all()


def test_a_limb_follows_the_hypotheses_that_agree():
    """The chosen hypothesis points the wrong way in some frames, another one the right way: the motion is right."""
    rng, times = np.random.default_rng(0), np.arange(60) / 30
    truth = Rotation.from_rotvec(np.outer(np.sin(2 * np.pi * 0.5 * times), [0, 0, 1.0])).as_matrix()
    flip = Rotation.from_rotvec([2.5, 0, 0]).as_matrix()
    candidates = np.stack([truth, truth, truth @ flip], axis=1)[:, :, None]
    candidates = nearest_rotations(candidates + 0.05 * rng.normal(size=candidates.shape))
    chosen = np.where(np.arange(60) % 10 // 2 == 2, 2, 0)
    motion = through(candidates, chosen, times, np.ones((60, 1)), CUTOFFS["light"])
    assert angles(motion[:, 0], truth).max() < 0.2
    assert angles(through(candidates, chosen, times, np.ones((60, 1)), None)[:, 0], truth).max() > 2


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return Rotation.from_matrix(first.swapaxes(-1, -2) @ second).magnitude()


def walk():
    """Somebody who walks away on two feet: root (F, 3), feet against it (F, 4, 3), which stand (F, 4), times."""
    times = np.arange(120) / 30
    root = np.stack([0.1 * times, 0.02 * np.sin(6 * times), 8 + 1.2 * times], axis=1)
    standing = np.zeros((120, 4))
    feet = np.zeros((120, 4, 3))
    for foot in range(2):
        stands = np.floor(times / 0.5).astype(int) % 2 == foot
        places = np.where(stands, np.floor(times / 0.5), np.nan)
        known = np.flatnonzero(stands)
        ahead = np.interp(times, times[known], 8 + 0.6 * places[known] + 0.3)
        for point in (2 * foot, 2 * foot + 1):
            feet[:, point] = np.stack([0 * times, 0.9 + 0 * times, ahead], axis=1) - root
            standing[:, point] = stands
    return root, feet, standing, times


def test_standing_feet_say_how_far_away_a_body_is():
    root, feet, standing, times = walk()
    rng = np.random.default_rng(0)
    ray = root / np.linalg.norm(root, axis=1, keepdims=True)
    seen = root + 0.25 * rng.normal(size=(120, 1)) * ray
    alone = placing.placed(seen, times, np.ones(120), feet, 0 * standing, 4.0)
    held = placing.placed(seen, times, np.ones(120), feet, standing, 4.0)
    moves = [np.linalg.norm(np.diff(places[:, None] + feet, axis=0), axis=-1) * 30 for places in (alone, held)]
    both = np.minimum(standing[1:], standing[:-1]) > 0
    assert moves[1][both].mean() < 0.3 * moves[0][both].mean()
    assert np.abs(held - root).mean() < np.abs(alone - root).mean()


def test_places_without_feet_or_noise_stay():
    root, feet, standing, times = walk()
    assert np.abs(placing.placed(root, times, np.ones(120), feet, 0 * standing, 4.0) - root).max() < 0.01
    weights = np.ones(120)
    weights[40:60] = 0
    gone = np.where(weights[:, None] > 0, root, 0)
    assert np.abs(placing.placed(gone, times, weights, feet, 0 * standing, 4.0) - root).max() < 0.05


def test_a_leg_bends_to_where_the_foot_should_be():
    rng = np.random.default_rng(0)
    hip = rng.normal(size=(50, 3))
    knee = hip + [0, -0.4, 0.1] + 0.05 * rng.normal(size=(50, 3))
    ankle = knee + [0, -0.4, -0.1] + 0.05 * rng.normal(size=(50, 3))
    target = ankle + 0.05 * rng.normal(size=(50, 3))
    target = hip + (target - hip) * np.minimum(1, 0.78 / np.linalg.norm(target - hip, axis=1))[:, None]
    upper, lower = placing.bend_leg(hip, knee, ankle, target)
    moved = hip + np.einsum("nij,nj->ni", upper, knee - hip) + np.einsum("nij,nj->ni", lower, ankle - knee)
    assert np.linalg.norm(moved - target, axis=1).max() < 2e-3
    still = placing.bend_leg(hip, knee, ankle, ankle)
    assert np.allclose(still, np.eye(3), atol=1e-6)


def test_one_hypothesis_is_a_path_too():
    rng, finder = np.random.default_rng(0), PathFinder(PathOptions(look_ahead=3))
    path = [i for t in range(9) for i in finder.push(np.zeros(1), rng.normal(size=(1, 4, 3)), t / 10)]
    assert path + finder.finish() == [0] * 9


class SlowWatcher:
    """Sees nobody, slowly."""

    def __init__(self):
        self.looked_at = 0

    def watch(self, frames, looked):
        for number, _ in enumerate(frames):
            time.sleep(0.02)
            self.looked_at += 1
            looked(number + 1)
        return [[] for _ in frames], [False for _ in frames]

    def state(self):
        return {"count": np.array(self.looked_at)}


def test_the_next_chunk_is_looked_at_meanwhile_and_all_come_in_order():
    watcher = SlowWatcher()
    chunks = [[Frame(4 * n + i, 0.0, None) for i in range(4)] for n in range(3)]
    behind = []
    for number, (chunk, sightings, cuts, state) in enumerate(_watched(watcher, iter(chunks), lambda done: None)):
        assert chunk is chunks[number] and len(sightings) == len(cuts) == 4
        assert state["count"] == 4 * (number + 1), "the state after this chunk, whatever was looked at since"
        time.sleep(0.2)
        behind.append(watcher.looked_at - 4 * (number + 1))
    assert behind == [4, 4, 0]


def test_who_gives_up_waits_for_no_more_than_a_frame():
    watcher = SlowWatcher()

    def looked(done):
        raise Cancelled

    with pytest.raises(Cancelled):
        list(_watched(watcher, iter([[Frame(i, 0.0, None) for i in range(400)]]), looked))
    assert watcher.looked_at < 200
    assert not any(thread.name.startswith("mega-watch") for thread in threading.enumerate())
