"""People are followed into a clip and out of it, as far as head and shoulders alone show them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mega_backend import pictures
from mega_backend.video.clips import Frame
from mega_backend.video.watch import Watcher

LOWER = (480, 380, 290, 215, 150, 90, 40, 0)
"""Pixels by which the person stands lower than at last, frame by frame; from 330 on the hips are out of sight, from 470
on the elbows. The last steps are a third of the person's size."""


@pytest.fixture(scope="module")
def entering():
    """Somebody who walks into the picture from below: head and shoulders first."""
    picture = pictures.read(Path(__file__).parents[2] / "examples" / "people.jpg")
    picture = cv2.copyMakeBorder(picture, 300, 0, 0, 0, cv2.BORDER_REPLICATE)
    views = [picture[480 - lower : 1130 - lower, 490:830] for lower in LOWER]
    return [Frame(index, index / 10, np.ascontiguousarray(view)) for index, view in enumerate(views)]


@pytest.mark.parametrize("way", ["in", "out"])
def test_half_a_person_is_followed(entering, way):
    views = [frame.picture for frame in (entering if way == "in" else entering[::-1])]
    frames = [Frame(index, index / 10, view) for index, view in enumerate(views)]
    sightings, cuts = Watcher().watch(frames)
    assert not any(cuts) and [len(seen) for seen in sightings] == [1] * len(frames)
    noses = np.array([seen[0].landmarks[0, 1] for seen in sightings])
    lower = np.array(LOWER if way == "in" else LOWER[::-1])
    assert np.abs(noses - noses.min() - lower).max() < 25


def test_going_on_from_a_state_is_as_if_nothing_had_happened(entering):
    whole, first, second = Watcher(), Watcher(), Watcher()
    frames = entering[3:]
    expected = whole.watch(frames[:3])[0] + whole.watch(frames[3:])[0]
    found = first.watch(frames[:3])[0]
    second.restore(first.state())
    found += second.watch(frames[3:])[0]
    for one, other in zip(expected, found, strict=True):
        assert len(one) == len(other)
        assert all(np.array_equal(a.landmarks, b.landmarks) for a, b in zip(one, other, strict=True))
