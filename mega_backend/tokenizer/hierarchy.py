"""The hierarchy of any mesh: which points each resolution has, who neighbours whom, and the way back to all vertices.

Everything is measured along the surface (geodesic distance over edges) and nothing is random: the same mesh gives the
same hierarchy. The neighbour lists come out as connection matrices in the published layout, see `mesh_conv`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree


def edge_graph(vertices: np.ndarray, faces: np.ndarray, stretch: np.ndarray | None = None) -> sparse.csr_matrix:
    """Symmetric graph of edge lengths of a mesh ``(V, 3)`` with faces ``(F, 3 or 4)``; separate pieces are joined.

    ``stretch (V)`` multiplies the lengths of the edges at a vertex.

    Quads count their diagonals as well, which keeps distances over a grid from growing by √2. A separate piece (an
    eye, say) is joined to the largest one by edges from each of its vertices to the nearest vertex there.
    """
    vertices = np.asarray(vertices, np.float64)
    corners = faces.shape[1]
    pairs = [(a, b) for a in range(corners) for b in range(a + 1, corners)]
    edges = np.concatenate([faces[:, pair] for pair in pairs])
    count, piece = connected_components(_graph(vertices, edges), directed=False)
    main = np.bincount(piece).argmax()
    for label in range(count):
        if label != main:
            mine, others = np.flatnonzero(piece == label), np.flatnonzero(piece == main)
            nearest = cKDTree(vertices[others]).query(vertices[mine])[1]
            edges = np.concatenate([edges, np.stack([mine, others[nearest]], 1)])
    return _graph(vertices, edges, stretch)


def _graph(vertices: np.ndarray, edges: np.ndarray, stretch: np.ndarray | None = None) -> sparse.csr_matrix:
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    length = np.maximum(np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1), 1e-9)
    if stretch is not None:
        length = length * stretch[edges].mean(1)
    half = sparse.coo_matrix((length, (edges[:, 0], edges[:, 1])), shape=(len(vertices), len(vertices)))
    return (half + half.T).tocsr()


def farthest_points(graph: sparse.csr_matrix, count: int, start: np.ndarray | None = None) -> np.ndarray:
    """``count`` vertices, each as far as possible from those before; sorted by choice, so prefixes are hierarchies.

    The first is the vertex farthest from vertex 0, unless ``start`` gives the first ones.
    """
    if not 1 <= count <= graph.shape[0]:
        raise ValueError(f"{count} points of a mesh with {graph.shape[0]} vertices: ask for 1 to {graph.shape[0]}.")
    if start is None:
        start = np.array([dijkstra(graph, indices=0).argmax()])
    chosen = list(start[:count])
    nearest = dijkstra(graph, indices=chosen, min_only=True)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        # Only the new point's neighbourhood can come nearer: the search stops at the largest distance left.
        nearest = np.minimum(nearest, dijkstra(graph, indices=chosen[-1], limit=nearest.max()))
    return np.array(chosen)


def points_in_parts(graph: sparse.csr_matrix, part: np.ndarray, counts: dict[int, int]) -> np.ndarray:
    """Farthest points again, with a fixed number in each part: ``counts`` per label of ``part (V)``.

    The parts take turns in proportion to their numbers, and every point is as far as possible from all before it.
    """
    turns = sorted((place / count, label) for label, count in counts.items() for place in range(count))
    first = turns[0][1]
    inside = np.flatnonzero(part == first)
    chosen = [int(inside[dijkstra(graph, indices=int(inside[0]))[inside].argmax()])]
    nearest = dijkstra(graph, indices=chosen[0])
    for _, label in turns[1:]:
        chosen.append(int(np.where(part == label, nearest, -1.0).argmax()))
        nearest = np.minimum(nearest, dijkstra(graph, indices=chosen[-1], limit=nearest.max()))
    return np.array(chosen)


@dataclass(frozen=True)
class Hierarchy:
    """Nested point sets of a mesh with V vertices, fine to coarse, and the distances between them along the surface.

    ``levels``: per level the vertex indices ``(P_l)``; every level is a prefix of the one before.
    ``distances (P_0, V)``: metres from each point of the finest level to every vertex.
    ``adjacent``: per level a boolean ``(P_l, P_l)``, symmetric: the cells of two points touch; a point touches itself.
    """

    levels: tuple[np.ndarray, ...]
    distances: np.ndarray
    adjacent: tuple[np.ndarray, ...]

    @classmethod
    def of_mesh(
        cls,
        vertices: np.ndarray,
        faces: np.ndarray,
        sizes: tuple[int, ...],
        stretch: np.ndarray | None = None,
        part: np.ndarray | None = None,
        coarsest: dict[int, int] | None = None,
    ) -> Hierarchy:
        """Choose points of decreasing ``sizes`` on a mesh ``(V, 3)``, metres, with faces ``(F, 3 or 4)``.

        ``stretch (V)`` lengthens distances around each vertex: where it is larger, points lie closer together.
        ``coarsest`` gives the number of points of the coarsest level for each label of ``part (V)``.
        """
        if list(sizes) != sorted(set(sizes), reverse=True):
            raise ValueError(f"Level sizes are {sizes}: they must strictly decrease.")
        graph = edge_graph(vertices, faces, stretch)
        start = None
        if coarsest is not None:
            if part is None or sum(coarsest.values()) != sizes[-1]:
                raise ValueError(f"The parts' points must add up to the coarsest level's {sizes[-1]}.")
            start = points_in_parts(graph, part, coarsest)
        points = farthest_points(graph, sizes[0], start)
        distances = dijkstra(graph, indices=points)
        edges = graph.tocoo()
        adjacent = []
        for size in sizes:
            cell = distances[:size].argmin(0)
            touching = np.eye(size, dtype=bool)
            touching[cell[edges.row], cell[edges.col]] = True
            adjacent.append(touching | touching.T)
        return cls(tuple(points[:size] for size in sizes), distances, tuple(adjacent))

    def between(self, fine: int, coarse: int) -> np.ndarray:
        """Distances ``(P_coarse, P_fine)`` between the points of two levels."""
        return self.distances[: len(self.levels[coarse])][:, self.levels[fine]]

    def rings(self, level: int, radius: int) -> np.ndarray:
        """``(P, P)``: number of steps between points over touching cells, −1 where it exceeds ``radius``."""
        steps = np.where(np.eye(len(self.adjacent[level]), dtype=bool), 0, -1)
        reached = steps == 0
        for step in range(1, radius + 1):
            grown = (reached.astype(np.float32) @ self.adjacent[level]) > 0
            steps[grown & ~reached] = step
            reached |= grown
        return steps

    def convolution(self, level: int, radius: int) -> np.ndarray:
        """Connection matrix at one level: all points within ``radius`` steps, the point itself first."""
        steps = self.rings(level, radius)
        return connection_matrix(steps >= 0, self.between(level, level).T, steps)

    def pooling(self, fine: int, coarse: int, nearest: int) -> tuple[np.ndarray, np.ndarray]:
        """Connection matrices down and up between two levels: mirror images of each other.

        Every fine point is tied to its ``nearest`` coarse points; rings are ranks among those.
        """
        distances = self.between(fine, coarse)
        order = distances.argsort(0, kind="stable")[:nearest]
        linked = np.zeros(distances.shape, bool)
        np.put_along_axis(linked, order, True, 0)
        rank = distances.argsort(0, kind="stable").argsort(0, kind="stable")
        return connection_matrix(linked, distances, rank), connection_matrix(linked.T, distances.T, rank.T)


def connection_matrix(linked: np.ndarray, distances: np.ndarray, rings: np.ndarray) -> np.ndarray:
    """The published layout, int32 ``(points_out, 1 + 2M)``, of links ``(points_out, points_in)``, nearest first."""
    points_in = linked.shape[1]
    width = int(linked.sum(1).max())
    matrix = np.tile(np.array([0, *[points_in, -1] * width], np.int32), (len(linked), 1))
    for row, links, distance, ring in zip(matrix, linked, distances, rings, strict=True):
        ids = np.flatnonzero(links)
        ids = ids[distance[ids].argsort(kind="stable")]
        row[0] = len(ids)
        row[1 : 1 + 2 * len(ids) : 2], row[2 : 2 + 2 * len(ids) : 2] = ids, ring[ids]
    return matrix


def fit_lift(
    hierarchy: Hierarchy, posed: np.ndarray, neighbours: int = 16, ridge: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """Weights that carry the finest level to all vertices: ridge regression on posed bodies ``(N, V, 3)``, metres.

    Each vertex follows its ``neighbours`` nearest points; ``ridge`` (metres² per body) holds weights small. Returns
    point ids ``(V, L)`` int32 and weights ``(V, L)`` float32. Rows sum to one, so that the lift moves rigidly with
    rigid points.
    """
    ids = hierarchy.distances.argsort(0, kind="stable")[:neighbours].T  # (V, L), nearest first
    points = posed[:, hierarchy.levels[0]]
    weights = np.empty(ids.shape)
    for start in range(0, len(ids), 512):
        rows = slice(start, start + 512)
        near = points[:, ids[rows]].astype(np.float64)  # (N, v, L, 3)
        # Relative to the nearest point the sum-to-one constraint is gone: its weight is what the others leave.
        basis = (near[:, :, 1:] - near[:, :, :1]).transpose(1, 2, 0, 3).reshape(near.shape[1], neighbours - 1, -1)
        target = (posed[:, rows] - near[:, :, 0]).transpose(1, 0, 2).reshape(near.shape[1], -1, 1)
        gram = basis @ basis.transpose(0, 2, 1) + ridge * len(posed) * np.eye(neighbours - 1)
        weights[rows, 1:] = np.linalg.solve(gram, basis @ target)[..., 0]
    weights[:, 0] = 1 - weights[:, 1:].sum(1)
    weights = weights.astype(np.float32)
    own = hierarchy.levels[0]
    weights[own] = np.eye(1, neighbours, dtype=np.float32)
    return ids.astype(np.int32), weights
