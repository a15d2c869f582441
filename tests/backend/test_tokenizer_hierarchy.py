"""The hierarchy covers any mesh evenly, its lists mirror each other, and the lift brings back the full body."""

import numpy as np
import pytest
import torch

from mega_backend.body import Body
from mega_backend.rotations import matrix_from_axis_angle
from mega_backend.tokenizer.hierarchy import Hierarchy, edge_graph, farthest_points, fit_lift, points_in_parts

SIZES = (430, 54)


def torus(around: int = 40, across: int = 20, radius: float = 1.0, tube: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """A quad mesh without borders: vertices (around · across, 3) and quads."""
    u, v = np.meshgrid(np.arange(around), np.arange(across), indexing="ij")
    phi, theta = 2 * np.pi * u / around, 2 * np.pi * v / across
    ring = radius + tube * np.cos(theta)
    vertices = np.stack([ring * np.cos(phi), ring * np.sin(phi), tube * np.sin(theta)], -1).reshape(-1, 3)
    corner = [((u + du) % around) * across + (v + dv) % across for du, dv in ((0, 0), (1, 0), (1, 1), (0, 1))]
    return vertices, np.stack(corner, -1).reshape(-1, 4)


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.bundled()


@pytest.fixture(scope="module")
def hierarchy(body) -> Hierarchy:
    return Hierarchy.of_mesh(body.mean.numpy(), body.quads.numpy(), SIZES)


def test_separate_pieces_are_joined():
    vertices, quads = torus()
    two = np.concatenate([vertices, 0.6 * vertices + [3.0, 0, 0]])
    graph = edge_graph(two, np.concatenate([quads, quads + len(vertices)]))
    points = farthest_points(graph, 30)
    hierarchy = Hierarchy.of_mesh(two, np.concatenate([quads, quads + len(vertices)]), (30, 8))
    assert np.isfinite(hierarchy.distances).all()
    assert (points < len(vertices)).any() and (points >= len(vertices)).any()


def test_points_cover_the_surface_evenly(hierarchy):
    for points in hierarchy.levels:
        within = hierarchy.distances[: len(points)][:, points] + 10 * np.eye(len(points))
        reach = hierarchy.distances[: len(points)].min(0).max()
        assert within.min() >= 0.99 * reach, "farthest points lie as far apart as any vertex lies from them"


def test_levels_are_nested_and_the_same_every_time(body, hierarchy):
    again = Hierarchy.of_mesh(body.mean.numpy(), body.quads.numpy(), SIZES)
    for first, second in zip(hierarchy.levels, again.levels, strict=True):
        assert np.array_equal(first, second)
    assert np.array_equal(hierarchy.levels[0][: SIZES[1]], hierarchy.levels[1])


def test_stretched_parts_get_more_points():
    vertices, quads = torus()
    upper = vertices[:, 1] > 0
    plain = Hierarchy.of_mesh(vertices, quads, (40, 10)).levels[0]
    stretched = Hierarchy.of_mesh(vertices, quads, (40, 10), np.where(upper, 2.0, 1.0)).levels[0]
    assert upper[stretched].sum() > 1.5 * upper[plain].sum()


def ids(matrix: np.ndarray) -> list[set[int]]:
    return [set(row[1 : 1 + 2 * row[0] : 2].tolist()) for row in matrix]


def test_lists_are_symmetric_mirrored_and_padded_as_published(hierarchy):
    same = ids(hierarchy.convolution(1, radius=2))
    assert all(p in same[p] and all(p in same[q] for q in same[p]) for p in range(len(same)))
    down, up = hierarchy.pooling(0, 1, nearest=4)
    assert down.dtype == up.dtype == np.int32
    assert all(q in near for p, near in enumerate(ids(up)) for q in near if p in ids(down)[q])
    pairs_down = {(p, q) for q, fine in enumerate(ids(down)) for p in fine}
    pairs_up = {(p, q) for p, coarse in enumerate(ids(up)) for q in coarse}
    assert pairs_down == pairs_up and all(len(coarse) == 4 for coarse in ids(up))
    for row in down:
        tail = row[1 + 2 * row[0] :]
        assert (tail[::2] == SIZES[0]).all() and (tail[1::2] == -1).all()


def posed(body: Body, count: int, seed: int) -> torch.Tensor:
    """Bodies with every joint turned at random, canonical (count, V, 3)."""
    generator = torch.Generator().manual_seed(seed)
    local = matrix_from_axis_angle(0.2 * torch.randn(count, body.joint_count, 3, generator=generator))
    world = [torch.eye(3).expand(count, 3, 3)]
    for joint in range(1, body.joint_count):
        world.append(world[body.parents[joint]] @ local[:, joint])
    return body.canonical_skin(torch.stack(world, 1), torch.randn(count, body.shape_count, generator=generator))


def test_lift_keeps_rigid_motion_and_brings_the_full_body_back(body, hierarchy):
    ids, weights = fit_lift(hierarchy, posed(body, 100, 0).numpy(), 16, 1e-7)
    assert np.abs(weights.sum(1) - 1).max() < 1e-5
    held_out = posed(body, 10, 1)
    points = held_out[:, hierarchy.levels[0].copy()]
    lifted = torch.einsum("vl,bvlc->bvc", torch.as_tensor(weights), points[:, torch.as_tensor(ids).long()])
    assert (lifted - held_out).norm(dim=-1).mean() < 2e-3


def test_parts_have_the_points_that_they_were_given(body):
    part, counts = body.vertex_part.numpy(), {0: 7, 1: 5, 2: 3, 8: 5}
    graph = edge_graph(body.mean.numpy(), body.quads.numpy())
    points = points_in_parts(graph, part, counts)
    assert {label: int((part[points] == label).sum()) for label in counts} == counts
    assert len(set(points)) == 20
    # The first points of every part lie far apart: the first half already has some of each.
    assert set(part[points[:10]]) == set(counts)
    levels = Hierarchy.of_mesh(body.mean.numpy(), body.quads.numpy(), (60, 20), None, part, counts).levels
    assert np.array_equal(levels[1], points) and np.array_equal(levels[0][:20], points)
    with pytest.raises(ValueError, match="add up"):
        Hierarchy.of_mesh(body.mean.numpy(), body.quads.numpy(), (60, 21), None, part, counts)
