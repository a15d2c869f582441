"""Metrics against SciPy and against cases worked out by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.transform import Rotation

from mega_backend.rotations import matrix_from_axis_angle
from train import metrics


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(4)


def test_procrustes_undoes_a_similarity_transform(random):
    target = torch.from_numpy(random.normal(size=(5, 14, 3)))
    rotation = torch.from_numpy(Rotation.random(5, random_state=1).as_matrix())
    points = 0.3 * target @ rotation.mT + torch.from_numpy(random.normal(size=(5, 1, 3)))
    torch.testing.assert_close(metrics.procrustes(points, target), target)
    assert metrics.aligned_distances(points, target).max() < 1e-9


def test_angles_between_rotations_are_scipys():
    first, second = (Rotation.random(50, random_state=seed) for seed in (1, 2))
    found = metrics.degrees(*(torch.from_numpy(turn.as_matrix()) for turn in (first, second)))
    np.testing.assert_allclose(found.numpy(), np.rad2deg((first.inv() * second).magnitude()), rtol=1e-6)


def test_procrustes_agrees_with_scipy(random):
    """SciPy's disparity is the residual with both sets centred and of unit norm (it allows reflections: none here)."""
    target = random.normal(size=(20, 14, 3))
    points = target + 0.2 * random.normal(size=target.shape)
    aligned = metrics.procrustes(torch.from_numpy(points), torch.from_numpy(target)).numpy()
    for own, a, b in zip(aligned, target, points, strict=True):
        _, _, disparity = scipy_procrustes(a, b)
        norm = np.linalg.norm(a - a.mean(0))
        assert np.square(own - a).sum() / norm**2 == pytest.approx(disparity, rel=1e-9)


def test_procrustes_never_reflects():
    target = torch.randn(1, 14, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mirrored = target * torch.tensor([-1.0, 1, 1])
    assert metrics.aligned_distances(mirrored, target) > 100


def test_distances_are_in_millimetres():
    zero = torch.zeros(2, 4, 3)
    assert metrics.distances(zero, zero + torch.tensor([0.003, 0.004, 0.0])).tolist() == pytest.approx([5.0, 5.0])


def test_moving_to_an_origin():
    points = torch.randn(2, 4, 3)
    assert torch.equal(metrics.moved_to(points, points[:, 1])[:, 1], torch.zeros(2, 3))


def test_an_answer_that_never_looks(random):
    """Two people of one body, facing opposite ways: the pose is known to it, the facing never, the mean is a line."""
    body = torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [0, 0.4, 0]])
    about = matrix_from_axis_angle(torch.tensor([[0.0, 0.6, 0], [0, -0.6, 0]]))
    found = metrics.blind(body.expand(2, -1, -1), about)
    off = 2 * 0.3 * np.sin(0.3) / 3 * 1000  # the mean orientation lies between the two
    assert found["mpjpe"] == pytest.approx(off, abs=0.1)
    assert found["pa_mpjpe"] == pytest.approx(0, abs=0.01)
    assert found["mean_joints_mpjpe"] == pytest.approx(0.3 * np.sin(0.6) / 3 * 1000, abs=0.1)
    assert found["mean_joints_mpjpe"] < found["mpjpe"]


def test_best_of_looks_at_the_first_q():
    best = metrics.best_of(torch.tensor([[5.0, 3.0, 4.0], [1.0, 2.0, 0.5]]), (1, 2, 3, 25))
    assert best.means() == {1: 3.0, 2: 2.0, 3: 1.75}


def test_diversity_of_two_and_of_equal_samples():
    points = torch.zeros(1, 2, 4, 3)
    assert metrics.pairwise_distance(points).item() == 0
    points[0, 1, :, 0] = 0.01
    assert metrics.pairwise_distance(points).item() == pytest.approx(10.0)
    assert metrics.spread(points)[0].tolist() == pytest.approx([5.0] * 4)


def test_coverage_of_truth_drawn_like_the_samples(random):
    points = torch.from_numpy(random.normal(size=(2000, 50, 2, 3)))
    truth = torch.from_numpy(random.normal(size=(2000, 2, 3)))
    for level, share in metrics.coverage(points, truth).items():
        assert share == pytest.approx(level, abs=0.03)


def test_overconfident_samples_cover_too_little(random):
    points = torch.from_numpy(0.3 * random.normal(size=(500, 50, 2, 3)))
    truth = torch.from_numpy(random.normal(size=(500, 2, 3)))
    assert metrics.coverage(points, truth)[0.9] < 0.3
