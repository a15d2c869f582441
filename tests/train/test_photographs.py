"""Pictures with known people, and what the detector says about them."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("warp")

from mega_backend.body import Body
from mega_backend.people import Detection
from mega_backend.people.landmarks import MAIN, MIRRORED
from train.data import detector, raycast
from train.data.detector import Detections, described, match, statistics
from train.data.photographs import Photographer, Truth
from train.data.synthetic_pictures import box


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth, Body]:
    """A picture in synthetic postures, what is known of it, and the body."""
    photographer = Photographer("val", None, size=352)
    path = tmp_path_factory.mktemp("pictures") / "000003.jpg"
    return path, photographer.take(path, (0, 3)), photographer.body


def perfect(truth: Truth, body: Body) -> list[Detection]:
    """What a detector without errors would say."""
    rotations, shape = truth.posed()
    turn = torch.from_numpy(truth.canonical_to_camera()).float()
    joints = body.joints(body.canonical_skin(rotations, shape), "mediapipe33") @ turn.mT
    joints = (joints - joints[:, [23, 24]].mean(1, keepdim=True)).numpy()
    return [
        Detection(np.zeros(4), np.column_stack([flat, np.ones(33)]).astype(np.float32), deep, 1.0)
        for flat, deep in zip(truth.landmarks, joints, strict=True)
    ]


def test_truth_describes_the_picture(taken: tuple[Path, Truth, Body]):
    path, truth, body = taken
    assert detector.read_picture(path).shape == (*truth.size[::-1], 3)
    rotations, shape = truth.posed()
    turn = torch.from_numpy(truth.canonical_to_camera()).float()
    vertices = body.canonical_skin(rotations, shape) @ turn.mT + torch.from_numpy(truth.translation).float()[:, None]
    points = body.joints(vertices, "mediapipe33").numpy()
    pixels = truth.focal_length * points[..., :2] / points[..., 2:] + truth.size / 2
    assert np.abs(pixels - truth.landmarks).max() < 0.1
    assert truth.seen[0, list(MAIN)].sum() >= 6
    again = Truth.load(path.with_suffix(".npz"))
    assert all((getattr(again, name) == value).all() for name, value in vars(truth).items())


def test_the_same_picture_from_the_same_seed(taken: tuple[Path, Truth, Body], tmp_path: Path):
    path, truth, body = taken
    again = Photographer("val", None, body, size=352).take(tmp_path / "a.jpg", (0, 3))
    assert (again.landmarks == truth.landmarks).all()
    assert (tmp_path / "a.jpg").read_bytes() == path.read_bytes()


def test_a_larger_picture_shows_the_same(taken: tuple[Path, Truth, Body], tmp_path: Path):
    path, truth, body = taken
    large = Photographer("val", None, body, size=704).take(tmp_path / "a.jpg", (0, 3))
    assert (large.size == 2 * truth.size).all()
    assert np.allclose(large.landmarks, 2 * truth.landmarks) and (large.seen == truth.seen).all()
    reduced = cv2.resize(detector.read_picture(tmp_path / "a.jpg"), tuple(truth.size), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - detector.read_picture(path)).mean() < 12


def test_a_worse_picture_covers_what_it_says(taken: tuple[Path, Truth, Body]):
    path, truth, _ = taken
    picture, seen_covered = detector.read_picture(path), 0
    for number in range(20):
        worse, covered = detector.worsened(picture, truth.landmarks[0], np.random.default_rng(number))
        again, _ = detector.worsened(picture, truth.landmarks[0], np.random.default_rng(number))
        assert worse.shape == picture.shape and worse.dtype == np.uint8 and (worse == again).all()
        assert 0 < np.abs(worse.astype(int) - picture).mean() < 90
        seen_covered += covered.any()
    assert 2 <= seen_covered <= 14


def test_several_looks_at_a_person_differ_but_are_about_that_person(tmp_path: Path):
    photographer = Photographer("val", None, size=704)
    path = tmp_path / "000001.jpg"
    truth = photographer.take(path, (0, 1))
    picture, body = detector.read_picture(path), photographer.body
    looks = [detector.variants(picture, truth, 4, np.random.default_rng(seed), body, 1) for seed in (0, 0)]
    found, again = (Detections.joined(parts) for parts in looks)
    assert len(found) >= 3 and (found.landmarks == again.landmarks).all()
    error = (found.landmarks - found.true_landmarks)[:, list(MAIN)].norm(dim=-1) / 2
    assert error.median() < 0.05
    assert found.landmarks.std(0).amax() > 1e-3


def test_what_stands_in_front_is_hit_first():
    random = np.random.default_rng(0)
    wall = box(np.array([0.0, 0.0, 3.0]), np.array([1.0, 1.0, 0.5]), 0.0, random)
    behind = box(np.array([0.0, 0.0, 6.0]), np.array([5.0, 1.0, 0.5]), 0.0, random)
    points = np.array([[0.0, 0.0, 6.0], [4.0, 0.0, 6.0], [0.0, 9.0, 1.0]])
    thing, distance = raycast.first_hits([wall, behind], np.zeros(3), points)
    assert thing.tolist() == [0, 1, -1]
    assert distance[0] == pytest.approx(2.5, abs=1e-3)


def test_people_are_matched_whatever_their_order_and_sides(taken: tuple[Path, Truth, Body]):
    truth = taken[1]
    one = truth.landmarks[0]
    two = replace(truth, landmarks=np.stack([one, one + np.array([3 * np.ptp(one[:, 0]), 0])]))
    found = [two.landmarks[1] + 3, two.landmarks[0][list(MIRRORED)]]
    assert match(found, two) == [1, 0]
    assert match(found[:1], two) == [None, 0]
    assert match([], two) == [None, None]
    assert match([one + 5 * np.ptp(one)], two) == [None, None]


def test_a_perfect_detector_has_no_errors(taken: tuple[Path, Truth, Body], tmp_path: Path):
    _, truth, body = taken
    found = described(perfect(truth, body), truth, body.subset(torch.arange(1)), 7)
    bank = found.bank(body)
    numbers = statistics(found, bank.landmarks)
    assert numbers["pa_mpjpe_of_3d"] < 1 and numbers["error_2d_main"] < 1e-3
    assert numbers["heading_degrees_median"] < 8 and numbers["arms_exchanged"] == 0
    # The true camera and rotation put the canonical landmarks where they are in the crop, but for perspective.
    turned = bank.landmarks @ found.rotation.mT
    crop = found.camera[:, None, :1] * (turned[..., :2] + found.camera[:, None, 1:])
    assert (crop - found.true_landmarks).norm(dim=-1).mean() < 0.06
    assert found.views.features.shape == (len(found), 33, 8)

    found.save(tmp_path / "found.npz")
    again = Detections.load(tmp_path / "found.npz", tmp_path / "found.npz")
    assert len(again) == 2 * len(found) and (again.picture == 7).all()


def test_mistaken_sides_are_counted(taken: tuple[Path, Truth, Body]):
    _, truth, body = taken
    mistaken = [replace(d, landmarks=d.landmarks[list(MIRRORED)]) for d in perfect(truth, body)]
    found = described(mistaken, truth, body, 0)
    numbers = statistics(found, found.bank(body).landmarks)
    assert numbers["error_2d_main"] > 0.02
    assert numbers["arms_exchanged"] + numbers["legs_exchanged"] > 0


def test_missing_detections_say_how_to_make_them(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"train\.data\.detector"):
        Detections.load(tmp_path / "none.npz")
