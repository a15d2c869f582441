"""The rig under a mesh, and its refinement to what a picture shows."""

import pytest
import torch

from mega_backend.body import Body
from mega_backend.refinement import Evidence, Refiner
from mega_backend.rig import Points, Pose, Rig
from mega_backend.rotations import matrix_from_axis_angle, world_from_local

COUNT = 6


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.bundled()


@pytest.fixture(scope="module")
def rig(body) -> Rig:
    return Rig(body)


def bent(rig: Rig, generator: torch.Generator, amount: float) -> torch.Tensor:
    """World rotations (COUNT,J,3,3): bones turned at random against their parents, fingers and toes straight."""
    body = rig.body
    turns = matrix_from_axis_angle(amount * torch.randn(COUNT, rig.group_count, 3, generator=generator))
    local = torch.eye(3).repeat(COUNT, body.joint_count, 1, 1)
    for joint, name in enumerate(body.joint_names):
        if not name.startswith(("finger", "toe")):
            local[:, joint] = turns[:, rig.group[joint]]
    return world_from_local(local, body.parents)


@pytest.fixture(scope="module")
def pose(rig) -> Pose:
    generator = torch.Generator().manual_seed(1)
    rotations = bent(rig, generator, 0.25)
    return Pose(rotations, rig.body.shape_bank[:COUNT], torch.randn(COUNT, 3, generator=generator))


def test_points_are_weighted_sums_of_the_posed_vertices(body, rig, pose):
    vertices = pose.vertices(body)
    landmarks = Points(body, body.regressor("mediapipe33"))
    both = Points.joined(landmarks, rig.surface)
    points = rig.linearise(both, pose).points
    assert torch.allclose(points[:, :33], body.joints(vertices, "mediapipe33"), atol=1e-5)
    assert torch.allclose(points[:, 33:], vertices[:, rig.vertex_indices], atol=1e-5)


def test_jacobian_is_the_derivative_of_a_step(body, rig, pose):
    generator = torch.Generator().manual_seed(2)
    jacobian = rig.linearise(rig.surface, pose).jacobian()
    # A small step along every unknown at once; the T-pose's share of the shape is part of `moved`.
    step = 1e-3 * torch.randn(COUNT, jacobian.shape[-1], generator=generator)
    before = rig.linearise(rig.surface, pose).points
    after = rig.linearise(rig.surface, rig.moved(pose, step)).points
    predicted = (jacobian @ step[:, None, :, None])[..., 0]
    assert (after - before - predicted).norm(dim=-1).max() < 0.03 * predicted.norm(dim=-1).max()


def test_rig_of_a_posed_body_is_found_again(body, rig, pose):
    vertices = pose.vertices(body)
    found = rig.fit(vertices)
    error = (found.vertices(body) - vertices).norm(dim=-1).mean(1)
    assert error.max() < 0.006


def test_rig_of_a_noisy_mesh_is_smoother_than_it(body, rig, pose):
    vertices = pose.vertices(body)
    noise = 0.01 * torch.randn(vertices.shape, generator=torch.Generator().manual_seed(3))
    found = rig.fit(vertices + noise).vertices(body)
    assert (found - vertices).norm(dim=-1).mean() < 0.6 * noise.norm(dim=-1).mean()


def test_each_mesh_is_fitted_as_if_it_were_alone(body, rig, pose):
    vertices = pose.vertices(body)
    alone = rig.fit(vertices[2:3]).vertices(body)
    assert torch.allclose(alone, rig.fit(vertices).vertices(body)[2:3], atol=1e-4)


def test_rig_follows_a_turned_and_moved_mesh(body, rig, pose):
    vertices = pose.vertices(body)
    turn = matrix_from_axis_angle(torch.tensor([0.3, 2.0, -0.5]))
    moved = vertices @ turn.T + torch.tensor([1.0, -2.0, 5.0])
    expected = rig.fit(vertices).vertices(body) @ turn.T + torch.tensor([1.0, -2.0, 5.0])
    assert (rig.fit(moved).vertices(body) - expected).norm(dim=-1).mean() < 0.002


class TestRefinement:
    focal_length = 1000.0

    @pytest.fixture
    def seen(self, body, rig):
        """True poses in front of a camera, their landmarks in the picture, and hypotheses that are off."""
        generator = torch.Generator().manual_seed(4)
        facing = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        rotations = facing @ bent(rig, generator, 0.2)
        shape = body.shape_bank[:COUNT]
        true = Pose(rotations, shape, torch.tensor([0.0, 0.0, 4.0]).expand(COUNT, 3))
        points = Points(body, body.regressor("mediapipe33"))
        landmarks = rig.linearise(points, true).points
        pixels = self.focal_length * landmarks[..., :2] / landmarks[..., 2:]
        side = 1.2 * (pixels.amax(1) - pixels.amin(1)).amax(-1)
        off = matrix_from_axis_angle(0.15 * torch.randn(COUNT, rig.group_count, 3, generator=generator))[:, rig.group]
        guess = Pose(off @ rotations, shape, true.translation + 0.05 * torch.randn(COUNT, 3, generator=generator))
        return true, guess, Evidence(pixels, torch.ones(COUNT, 33), self.focal_length, side), points

    def miss(self, rig, pose, evidence, points):
        """Mean distance in the picture as a share of the box side (COUNT)."""
        where = rig.linearise(points, pose).points
        pixels = self.focal_length * where[..., :2] / where[..., 2:]
        return (
            ((pixels - evidence.landmarks).norm(dim=-1) * evidence.weights).sum(1)
            / evidence.weights.sum(1)
            / evidence.box_side
        )

    def test_landmarks_are_met_and_the_body_gets_no_worse(self, body, rig, seen):
        true, guess, evidence, points = seen
        refined = Refiner(rig, body).refine(guess, evidence)
        assert self.miss(rig, guess, evidence, points).mean() > 0.03
        assert self.miss(rig, refined, evidence, points).max() < 0.01

        def error(pose):
            a, b = (rig.linearise(points, p).points for p in (pose, true))
            return ((a - a.mean(1, keepdim=True)) - (b - b.mean(1, keepdim=True))).norm(dim=-1).mean()

        assert error(refined) < 0.9 * error(guess)

    def test_a_hypothesis_that_fits_stays(self, body, rig, seen):
        true, _, evidence, _ = seen
        refined = Refiner(rig, body).refine(true, evidence)
        assert (refined.vertices(body) - true.vertices(body)).norm(dim=-1).mean() < 0.01

    def test_one_wild_landmark_is_let_go(self, body, rig, seen):
        true, _, evidence, points = seen
        wild = evidence.landmarks.clone()
        wild[:, 15] += 0.8 * evidence.box_side[:, None]
        refined = Refiner(rig, body).refine(
            true, Evidence(wild, evidence.weights, self.focal_length, evidence.box_side)
        )
        assert self.miss(rig, refined, evidence, points).max() < 0.02

    def test_nothing_seen_moves_nothing(self, body, rig, seen):
        _, guess, evidence, _ = seen
        blind = Evidence(evidence.landmarks, torch.zeros(COUNT, 33), self.focal_length, evidence.box_side)
        refined = Refiner(rig, body).refine(guess, blind)
        assert (refined.translation - guess.translation).abs().max() < 1e-3
        assert (refined.vertices(body) - guess.vertices(body)).norm(dim=-1).mean() < 0.01
