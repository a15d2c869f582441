"""Synthetic views agree with their own truth, cover what they should, and are detectors' views in their statistics."""

import math
from dataclasses import replace

import pytest
import torch

from mega_backend.body import Body
from mega_backend.people.landmarks import MAIN, MIRRORED
from mega_backend.rotations import about_axis
from train import metrics
from train.data import views

LIMBS = list(MAIN)
EXACT = replace(
    views.ViewOptions().benign(),
    noise=0.0,
    hidden_noise=0.0,
    swapped=0.0,
    turned_around=0.0,
    estimate_angle=0.0,
    depth_flip=0.0,
    flattening=0.0,
)


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    """Canonical landmarks (400, 33, 3) of people of all shapes, arms and legs somewhat moved."""
    body = Body.bundled()
    shape = body.shape_bank[:400]
    generator = torch.Generator().manual_seed(3)
    rotations = torch.eye(3).repeat(400, body.joint_count, 1, 1)
    for side, sign in (("L", 1.0), ("R", -1.0)):
        lower = about_axis(2, -sign * 1.2 * torch.rand(400, generator=generator))
        for name in ("upperarm01", "upperarm02", "lowerarm01", "lowerarm02", "wrist"):
            rotations[:, body.joint_names.index(f"{name}.{side}")] = lower
    landmarks = body.skin_joints(rotations, shape, "mediapipe33")
    return landmarks - body.centre(rotations, shape)[:, None]


def draw(points: torch.Tensor, options: views.ViewOptions | None = None, seed: int = 0) -> views.Views:
    root = torch.eye(3).expand(len(points), 3, 3)
    return views.draw(points, root, torch.Generator().manual_seed(seed), options)


def reprojected(view: views.Views, points: torch.Tensor) -> torch.Tensor:
    camera = view.camera[:, None]
    return camera[..., :1] * ((points @ view.rotation.mT)[..., :2] + camera[..., 1:])


def test_far_cameras_are_weak_perspective(points):
    """From far away and without noise, landmarks lie where the true rotation and camera put them."""
    view = draw(points, replace(EXACT, near=200.0, far=400.0))
    assert (reprojected(view, points) - view.landmarks).abs().max() < 0.02


def test_near_cameras_are_not(points):
    view = draw(points, replace(EXACT, near=2.0, far=2.1))
    error = (reprojected(view, points) - view.landmarks).norm(dim=-1)
    assert 0.01 < error.mean() < 0.15


def test_an_upright_person_seen_from_the_front_faces_the_camera(points):
    level = replace(EXACT, pitch=0.0, roll=0.0, any_orientation=0.0)
    view = draw(points, level)
    rotation = view.rotation
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(rotation)))
    # The head is above the feet in most pictures: y points down.
    upright = view.landmarks[:, 0, 1] < view.landmarks[:, 27:29, 1].mean(1)
    assert upright.float().mean() > 0.9
    # Who faces the camera has the left shoulder on the picture's right side.
    facing = rotation[:, 2, 2] < -0.7
    assert (view.landmarks[facing, 11, 0] > view.landmarks[facing, 12, 0]).float().mean() > 0.97


def test_all_headings_occur_equally(points):
    forward = draw(points.repeat(5, 1, 1)).rotation[:, :, 2]
    heading = torch.atan2(forward[:, 0], forward[:, 2])
    share = torch.histc(heading, 8, -math.pi, math.pi) / len(heading)
    assert (share - 1 / 8).abs().max() < 0.04


def test_the_crop_holds_what_the_detector_sees(points):
    view = draw(points)
    seen = view.visibility > 0.5
    assert (view.landmarks[seen].abs() < 1.15).all(-1).float().mean() > 0.97


def test_an_exact_estimate_is_the_body_in_camera_axes(points):
    view = draw(points, EXACT)
    truth = points @ view.rotation.mT
    # Bone lengths vary by a few percent even without other errors.
    assert metrics.aligned_distances(view.landmarks_3d[:, LIMBS], truth[:, LIMBS]).mean() < 35


def test_the_usual_estimate_is_as_wrong_as_detectors_are(points):
    view = draw(points, views.ViewOptions().benign())
    error = metrics.aligned_distances(view.landmarks_3d[:, LIMBS], (points @ view.rotation.mT)[:, LIMBS])
    assert 45 < error.mean() < 110
    assert view.landmarks_3d[:, 23:25].mean(1).abs().max() < 1e-5


def test_hidden_landmarks_are_less_visible_and_less_exact(points):
    view = draw(points, views.ViewOptions(near=100.0, far=200.0))
    error = (reprojected(view, points) - view.landmarks).norm(dim=-1) * 2 / view.camera[:, :1]
    seen, unseen = view.visibility > 0.8, (view.visibility < 0.4) & (view.visibility >= 0)
    assert unseen.any()
    assert error[unseen].median() > 2 * error[seen].median()


def test_options_leave_things_out(points):
    flat = draw(points, views.ViewOptions(has_estimate=0.0))
    assert flat.landmarks_3d.isnan().all()
    assert (flat.features[..., 4:] == 0).all()
    assert (draw(points, views.ViewOptions(missing=1.0)).visibility == -1).any()
    assert (draw(points, views.ViewOptions().benign()).visibility >= 0).all()
    assert draw(points).features.isfinite().all()


def test_same_seed_same_views(points):
    first, second = draw(points, seed=4), draw(points, seed=4)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.landmarks, draw(points, seed=5).landmarks)


def test_swapping_twice_is_no_swap():
    mirror = torch.tensor(MIRRORED)
    assert torch.equal(mirror[mirror], torch.arange(33))


def test_camera_fit_is_exact_for_weak_perspective():
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(5, 33, 3, generator=generator)
    camera = torch.tensor([[0.9, 0.1, -0.2]]).repeat(5, 1)
    crop = camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])
    torch.testing.assert_close(views.fit_camera(points, crop), camera)


def test_measured_errors_are_handed_on_in_the_persons_own_size(points):
    """Detections whose landmarks are all a twentieth of the person too far right, or left in their mirror images."""
    exact = replace(EXACT, near=200.0, far=400.0, measured=1.0, mixed=0.0)
    seen = draw(points, exact)
    true_landmarks = reprojected(seen, points)
    metric = points @ seen.rotation.mT
    size = (metric.amax(1) - metric.amin(1)).amax(-1)
    off = 0.05 * seen.camera[:, 0] * size
    said = seen._replace(landmarks=true_landmarks + torch.stack([off, torch.zeros_like(off)], -1)[:, None])
    errors = views.measured(points, said, true_landmarks)
    assert len(errors.pose) == 2 * len(points)
    root = torch.eye(3).expand(len(points), 3, 3)
    view = views.draw(points, root, torch.Generator().manual_seed(7), exact, errors)
    metric = points @ view.rotation.mT
    size = (metric.amax(1) - metric.amin(1)).amax(-1)
    found = (view.landmarks - reprojected(view, points)) / (view.camera[:, :1] * size[:, None])[..., None]
    assert (found[..., 1].abs() < 0.01).all()
    torch.testing.assert_close(found[..., 0].abs(), torch.full_like(found[..., 0], 0.05), atol=0.01, rtol=0)
    assert (found[:, 0, 0] > 0).any() and (found[:, 0, 0] < 0).any()
    # Limbs err as different people's did: all of a limb the same way, not all limbs of everybody.
    mixed = views.draw(points, root, torch.Generator().manual_seed(7), replace(exact, mixed=1.0), errors)
    found = (mixed.landmarks - reprojected(mixed, points))[..., 0].sign()
    limbs = [found[:, [place for place, limb in enumerate(views.LIMB_OF) if limb == number]] for number in range(5)]
    assert all((limb == limb[:, :1]).all() for limb in limbs)
    assert any((limb[:, 0] != limbs[0][:, 0]).any() for limb in limbs[1:])
    # Without errors given, nothing is measured.
    assert torch.equal(
        views.draw(points, root, torch.Generator().manual_seed(7), exact).landmarks, draw(points, exact, 7).landmarks
    )
