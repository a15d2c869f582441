"""The bundled model does its job from a fresh start: pictures in, bodies on the people in them."""

from pathlib import Path

import numpy as np
import pytest

import mega_backend
from mega_backend import camera, checkpoint

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (checkpoint.BUNDLED / checkpoint.CONFIG).is_file(), reason="needs the bundled model: train it, or check it out"
)


@pytest.fixture(scope="module")
def recoverer():
    return mega_backend.load()


@pytest.fixture(scope="module")
def example(recoverer):
    return recoverer.recover(ROOT / "examples" / "people.jpg", hypotheses=3, seed=0)


def test_joints_lie_on_the_people(recoverer, example):
    assert len(example.people) == 3
    for errors in recoverer.landmark_errors(example):
        assert errors[0] < 0.04 and errors.max() < 0.08


def test_bodies_are_bodies(recoverer, example):
    for person in example.people:
        canonical = (person.vertices - person.translation[:, None]) @ person.rotation
        extent = np.ptp(canonical, axis=1)
        assert (extent[:, 1] > 0.9).all() and (extent < 2.3).all()
        # Everybody stands, head up, before the camera.
        up = person.rotation[:, 1, 1]
        assert (up < -0.7).all() and (person.vertices[..., 2] > camera.NEAR).all()


def test_alternatives_differ_where_the_model_is_unsure(recoverer, example):
    for person in example.people:
        assert not np.array_equal(person.tokens[1], person.tokens[2])
        assert 0 < person.spread.mean() < 0.15


def test_photographs_are_met(recoverer, shared):
    for name in ("yoga_pexels.jpg", "coco_785_ccby.jpg"):
        recovery = recoverer.recover(shared / "photos" / name, hypotheses=1)
        (errors,) = recoverer.landmark_errors(recovery)
        assert errors[0] < 0.04


def test_random_people_are_bodies(recoverer):
    for person in recoverer.random(3, seed=1).people:
        canonical = (person.vertices - person.translation[:, None]) @ person.rotation
        assert 0.5 < np.ptp(canonical[0], axis=0).max() < 2.4
