"""Rotations as batched torch functions: matrices, quaternions (w, x, y, z), six numbers, axis and angle.

Matrices act on column vectors. *World* rotations of a skeleton turn each joint's frame from the T-pose to the pose,
in the body's axes; *local* ones do so relative to the parent joint, so that world[j] = world[parent[j]] @ local[j].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def matrix_from_6d(numbers: Tensor) -> Tensor:
    """Rotation (…, 3, 3) from six numbers (…, 6): Gram–Schmidt of two 3-vectors, which become its first two rows.

    Zhou et al., "On the Continuity of Rotation Representations in Neural Networks", with rows as MEGA has them.
    """
    first, second = numbers[..., :3], numbers[..., 3:]
    x = functional.normalize(first, dim=-1)
    y = functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack((x, y, torch.linalg.cross(x, y)), dim=-2)


def sixd_from_matrix(matrix: Tensor) -> Tensor:
    """The first two rows of a rotation (…, 3, 3), one after the other: (…, 6). Inverse of `matrix_from_6d`."""
    return matrix[..., :2, :].flatten(-2)


def matrix_from_quaternion(quaternion: Tensor) -> Tensor:
    """Rotation (…, 3, 3) of quaternions (…, 4), w first, of any length but zero."""
    w, x, y, z = functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quaternion_from_matrix(matrix: Tensor) -> Tensor:
    """Unit quaternions (…, 4) with w ≥ 0 of rotations (…, 3, 3).

    Takes, of the four ways to write the quaternion, the one that divides by its largest component (Shepperd's
    method).
    """
    m = matrix
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    d = torch.stack((trace, m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]), dim=-1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    ww, xx = 1 + trace, 1 + 2 * m[..., 0, 0] - trace
    yy, zz = 1 + 2 * m[..., 1, 1] - trace, 1 + 2 * m[..., 2, 2] - trace
    candidates = torch.stack(
        (
            torch.stack((ww, a, b, c), dim=-1),
            torch.stack((a, xx, xy, xz), dim=-1),
            torch.stack((b, xy, yy, yz), dim=-1),
            torch.stack((c, xz, yz, zz), dim=-1),
        ),
        dim=-2,
    )
    best = d.argmax(-1)[..., None, None].expand(*d.shape[:-1], 1, 4)
    quaternion = functional.normalize(candidates.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def multiply(first: Tensor, second: Tensor) -> Tensor:
    """Quaternion product (…, 4): the rotation `second` followed by `first`, as for matrices."""
    w, x, y, z = first.unbind(-1)
    a, b, c, d = second.unbind(-1)
    return torch.stack(
        (
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ),
        dim=-1,
    )


def conjugate(quaternion: Tensor) -> Tensor:
    """The inverse of unit quaternions (…, 4)."""
    return torch.cat((quaternion[..., :1], -quaternion[..., 1:]), dim=-1)


def half(quaternion: Tensor) -> Tensor:
    """Half of the rotation of unit quaternions (…, 4), the short way round."""
    turned = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    return functional.normalize(torch.cat((turned[..., :1] + 1, turned[..., 1:]), dim=-1), dim=-1)


def twist(quaternion: Tensor, axis: int) -> Tensor:
    """The twist of unit quaternions (…, 4) about coordinate axis 0, 1 or 2: q = swing · twist."""
    w, along = quaternion[..., 0], quaternion[..., 1 + axis]
    parts = [torch.zeros_like(w)] * 4
    parts[0], parts[1 + axis] = w, along
    result = torch.stack(parts, dim=-1)
    # A swing by 180° leaves the twist undefined: none, then.
    none = torch.zeros_like(result)
    none[..., 0] = 1
    return torch.where(result.norm(dim=-1, keepdim=True) > 1e-6, functional.normalize(result, dim=-1, eps=1e-12), none)


def quaternion_from_axis_angle(vector: Tensor) -> Tensor:
    """Unit quaternions (…, 4) of rotation vectors (…, 3): axis times angle in radians."""
    angle = vector.norm(dim=-1, keepdim=True)
    return torch.cat((torch.cos(angle / 2), vector * 0.5 * torch.sinc(angle / (2 * torch.pi))), dim=-1)


def axis_angle_from_quaternion(quaternion: Tensor) -> Tensor:
    """Rotation vectors (…, 3), at most π long, of unit quaternions (…, 4)."""
    turned = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = turned[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, turned[..., :1])
    return turned[..., 1:] * torch.where(sine > 1e-7, angle / sine.clamp_min(1e-7), torch.full_like(sine, 2.0))


def matrix_from_axis_angle(vector: Tensor) -> Tensor:
    """Rotation (…, 3, 3) of rotation vectors (…, 3): axis times angle in radians."""
    return matrix_from_quaternion(quaternion_from_axis_angle(vector))


def axis_angle_from_matrix(matrix: Tensor) -> Tensor:
    """Rotation vectors (…, 3), at most π long, of rotations (…, 3, 3)."""
    return axis_angle_from_quaternion(quaternion_from_matrix(matrix))


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Angle in radians between rotations (…, 3, 3): (…)."""
    return axis_angle_from_matrix(first.transpose(-1, -2) @ second).norm(dim=-1)


def about_axis(axis: int, angle: Tensor) -> Tensor:
    """Rotation (…, 3, 3) by `angle` (…) radians about coordinate axis 0, 1 or 2."""
    vector = torch.zeros(*angle.shape, 3, dtype=angle.dtype, device=angle.device)
    vector[..., axis] = angle
    return matrix_from_axis_angle(vector)


def smallest_between(first: Tensor, second: Tensor) -> Tensor:
    """The smallest rotation (…, 3, 3) from direction `first` (…, 3) to `second` (…, 3); not for opposite ones."""
    first, second = functional.normalize(first, dim=-1), functional.normalize(second, dim=-1)
    cross, cosine = torch.linalg.cross(first, second), (first * second).sum(-1, keepdim=True)
    # q = (1 + cos, cross), normalised, is the half-way construction of the quaternion.
    return matrix_from_quaternion(torch.cat((1 + cosine, cross), dim=-1))


def random_matrices(count: int, generator: torch.Generator) -> Tensor:
    """Uniformly distributed rotations (count, 3, 3), drawn on the generator's device."""
    numbers = torch.randn(count, 4, generator=generator, device=generator.device)
    return matrix_from_quaternion(numbers)


def world_from_local(local: Tensor, parents: Sequence[int]) -> Tensor:
    """World rotations (…, J, 3, 3) of a skeleton from local ones; parents before children, −1 for the root's."""
    world: list[Tensor] = []
    for joint, parent in enumerate(parents):
        world.append(local[..., joint, :, :] if parent < 0 else world[parent] @ local[..., joint, :, :])
    return torch.stack(world, dim=-3)


def local_from_world(world: Tensor, parents: Sequence[int]) -> Tensor:
    """Local rotations (…, J, 3, 3) of a skeleton from world ones. Inverse of `world_from_local`."""
    index = torch.as_tensor([max(parent, 0) for parent in parents], device=world.device)
    local = world[..., index, :, :].transpose(-1, -2) @ world
    roots = torch.as_tensor([parent < 0 for parent in parents], device=world.device)
    return torch.where(roots[:, None, None], world, local)
