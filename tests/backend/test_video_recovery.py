"""Sightings to motion with the bundled model: every frame once, gaps filled, bones of one length."""

import numpy as np
import pytest
from people_fixture import SIZE, detections

import mega_backend
from mega_backend.video import placing
from mega_backend.video.motion import MotionOptions, MotionSolver
from mega_backend.video.tracking import Sighting


@pytest.fixture(scope="module")
def walked():
    """Somebody sliding to the right for two seconds, unseen for half a second of them."""
    recoverer = mega_backend.load()
    body, rng = detections(1)[0], np.random.default_rng(0)
    frames = []
    for index in range(16):
        landmarks = body.landmarks.copy()
        landmarks[:, :2] += np.array([12.0 * index, 0]) + rng.normal(0, 1, (33, 2))
        box = np.concatenate([landmarks[:, :2].min(0), landmarks[:, :2].max(0)])
        seen = [] if 7 <= index < 11 else [(1, Sighting(box, landmarks, body.landmarks_3d))]
        frames.append((index, index / 8, seen))
    solver = MotionSolver(recoverer, SIZE, options=MotionOptions(hypotheses=2))
    early = solver.push(frames[:8]) + solver.push(frames[8:])
    return recoverer, early + solver.finish()


def test_every_frame_comes_once_and_gaps_are_filled(walked):
    _, results = walked
    assert [frame.index for frame in results] == list(range(16))
    assert all([person.track for person in frame.people] == [1] for frame in results)
    assert [frame.people[0].hypothesis < 0 for frame in results] == [7 <= i < 11 for i in range(16)]
    across = np.array([frame.people[0].joints[0, 0] / frame.people[0].joints[0, 2] for frame in results])
    assert (np.diff(across) > 0).all()


def test_one_body_and_rotations_that_are_rotations(walked):
    _, results = walked
    people = [frame.people[0] for frame in results]
    thighs = [np.linalg.norm(person.joints[4] - person.joints[1]) for person in people]
    assert np.ptp(thighs) < 0.02
    turned = np.stack([person.rotations for person in people])
    assert np.allclose(turned @ turned.swapaxes(-1, -2), np.eye(3), atol=1e-4)


def test_the_rig_lies_in_its_mesh(walked):
    recoverer, _ = walked
    body = detections(1)[0]
    solver = MotionSolver(recoverer, SIZE, options=MotionOptions(hypotheses=1))
    seen = Sighting(body.box, body.landmarks, body.landmarks_3d)
    off = solver.hypothesiser.rig_errors([(1, 0, 0.0, seen)])
    assert off.shape == (1, 1) and 0 < off[0, 0] < 0.01


def test_smoothing_must_be_known():
    with pytest.raises(ValueError, match="off, light, strong"):
        MotionOptions(smoothing="much")


def test_a_foot_stands_while_it_keeps_its_place():
    body = detections(1)[0]
    landmarks = np.repeat(body.landmarks[None], 20, axis=0)
    landmarks[:, [29, 31], 0] += 30.0 * np.maximum(0, np.arange(20) - 10)[:, None]
    standing = placing.contacts(np.arange(20) / 10, landmarks, np.ones(20, bool))
    assert (standing[:8, :2] > 0.5).all() and (standing[13:, :2] < 0.1).all()
    assert (standing[:, 2:] > 0.5).all()


def test_a_glimpse_after_an_absence_is_nobody():
    """Somebody leaves; for two frames the tracker takes something else for them: no body flies there."""
    recoverer = mega_backend.load()
    body = detections(1)[0]
    frames = []
    for index in range(24):
        landmarks = body.landmarks.copy()
        landmarks[:, :2] += [200.0 if index >= 16 else 0.0, 0]
        seen = [(1, Sighting(body.box, landmarks, body.landmarks_3d))] if index < 10 or index in (16, 17) else []
        frames.append((index, index / 10, seen))
    solver = MotionSolver(recoverer, SIZE, options=MotionOptions(hypotheses=1))
    results = solver.push(frames[:12]) + solver.push(frames[12:]) + solver.finish()
    assert [bool(frame.people) for frame in results] == [index < 10 for index in range(24)]
