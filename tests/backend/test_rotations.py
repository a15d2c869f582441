"""Rotations: every representation leads back to the same matrix, and skeletons to the same joints."""

import math

import pytest
import torch

from mega_backend import rotations as R


@pytest.fixture
def matrices() -> torch.Tensor:
    some = R.random_matrices(200, torch.Generator().manual_seed(0)).double()
    half_turns = torch.stack([R.about_axis(axis, torch.tensor(math.pi, dtype=torch.float64)) for axis in range(3)])
    return torch.cat((some, half_turns, torch.eye(3, dtype=torch.float64)[None]))


def test_matrices_are_rotations(matrices):
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(matrices @ matrices.mT, identity.expand_as(matrices), atol=1e-6)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(len(matrices), dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(
    "there, back",
    [
        (R.sixd_from_matrix, R.matrix_from_6d),
        (R.quaternion_from_matrix, R.matrix_from_quaternion),
        (R.axis_angle_from_matrix, R.matrix_from_axis_angle),
    ],
)
def test_representations_lead_back(matrices, there, back):
    assert torch.allclose(back(there(matrices)), matrices, atol=1e-5)


def test_six_numbers_are_the_first_two_rows(matrices):
    assert torch.equal(R.sixd_from_matrix(matrices)[:, :3], matrices[:, 0])
    scaled = torch.cat((3 * matrices[:, 0], 2 * matrices[:, 1] + 5 * matrices[:, 0]), dim=-1)
    assert torch.allclose(R.matrix_from_6d(scaled), matrices, atol=1e-6)


def test_products_agree_with_matrices(matrices):
    first, second = R.quaternion_from_matrix(matrices), R.quaternion_from_matrix(matrices.flip(0))
    product = R.matrix_from_quaternion(R.multiply(first, second))
    assert torch.allclose(product, matrices @ matrices.flip(0), atol=1e-5)
    assert torch.allclose(R.matrix_from_quaternion(R.conjugate(first)), matrices.mT, atol=1e-5)


def test_two_halves_make_the_whole(matrices):
    quaternion = R.quaternion_from_matrix(matrices[:200])
    half = R.half(-quaternion)
    assert torch.allclose(R.matrix_from_quaternion(R.multiply(half, half)), matrices[:200], atol=1e-5)
    angle = R.axis_angle_from_quaternion(half).norm(dim=-1)
    assert torch.allclose(2 * angle, R.axis_angle_from_matrix(matrices[:200]).norm(dim=-1), atol=1e-4)


@pytest.mark.parametrize("axis", range(3))
def test_without_its_twist_a_swing_moves_the_axis_alike(matrices, axis):
    quaternion = R.quaternion_from_matrix(matrices[:200])
    swing = R.multiply(quaternion, R.conjugate(R.twist(quaternion, axis)))
    assert torch.allclose(R.matrix_from_quaternion(swing)[..., axis], matrices[:200, :, axis], atol=1e-5)
    assert R.twist(swing, axis)[:, 0].abs().min() > 1 - 1e-5


def test_smallest_rotation_takes_one_direction_to_the_other_by_their_angle():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.nn.functional.normalize(torch.randn(2, 100, 3, generator=generator), dim=-1)
    turn = R.smallest_between(first, 3 * second)
    assert torch.allclose((turn @ first[..., None])[..., 0], second, atol=1e-5)
    angle = torch.acos((first * second).sum(-1).clamp(-1, 1))
    assert torch.allclose(R.axis_angle_from_matrix(turn).norm(dim=-1), angle, atol=1e-3)


def test_world_and_local_rotations_of_a_skeleton_are_inverse():
    parents = [-1, 0, 1, 1, 3, 0]
    local = R.random_matrices(12, torch.Generator().manual_seed(2)).unflatten(0, (2, 6))
    world = R.world_from_local(local, parents)
    assert torch.allclose(world[:, 4], local[:, 0] @ local[:, 1] @ local[:, 3] @ local[:, 4], atol=1e-5)
    assert torch.allclose(R.local_from_world(world, parents), local, atol=1e-5)


def test_angle_between_is_the_angle_turned():
    start = R.random_matrices(50, torch.Generator().manual_seed(3))
    turn = R.about_axis(1, torch.full((50,), 0.7))
    assert torch.allclose(R.angle_between(start, start @ turn), torch.full((50,), 0.7), atol=1e-4)


def test_small_turns_have_gradients():
    vector = torch.zeros(4, 3, requires_grad=True)
    R.matrix_from_axis_angle(vector)[..., 0, 1].sum().backward()
    assert torch.isfinite(vector.grad).all()
    assert torch.allclose(vector.grad[:, 2], torch.full((4,), -1.0))
