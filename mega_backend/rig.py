"""The rig under a mesh: the pose and shape of a body whose skin lies on given points.

Bones are turned in closed form first (weighted Procrustes), then a few Gauss–Newton steps move all bones, the shape
and the position together. Points are any weighted sums of the body's vertices, so that vertices, joints and landmarks
are the same thing to the solver. For world rotations R_k a small turn ω_k of bone k alone, everything below it carried
along but not turned, moves point i by ω_k × a_ik, with a_ik = R_k (m_ik − u_ik h_k) + Σ_c U_ic R_k (h_c − h_k) over the
children c: m and u are the point's skinning moments, U their sums down the tree, h the rest heads. The Jacobian is
therefore exact and cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mega_backend.body import Body
from mega_backend.rotations import matrix_from_axis_angle

# Fingers and toes keep the place that the T-pose gives them: they turn with these bones.
CARRIED_BY = {"finger": "wrist", "toe": "foot"}


@dataclass(frozen=True)
class Pose:
    """A posed body: vertices = body.skin(rotations, shape) + translation.

    rotations (B,J,3,3) in the world, from the T-pose; shape (B,S); translation (B,3) in metres.
    """

    rotations: Tensor
    shape: Tensor
    translation: Tensor

    def vertices(self, body: Body) -> Tensor:
        """Posed vertices (B,V,3)."""
        return body.skin(self.rotations, self.shape) + self.translation[:, None]


class Points:
    """Weighted sums of a body's vertices, reduced to what posing them needs.

    Args:
        body: the full body.
        matrix: (P,V) weights, each row summing to 1; or vertex indices (P,).
    """

    def __init__(self, body: Body, matrix: Tensor):
        vertices = torch.cat((body.mean[None], body.basis))  # (S+1,V,3)
        if matrix.dtype == torch.long:
            self.weights = body.weights[matrix]
            self.moments = self.weights[None, :, :, None] * vertices[:, matrix, None]
        else:
            self.weights = matrix @ body.weights
            # Row by row: P·V·J numbers at once would be gigabytes.
            rows = []
            for row in matrix:
                used = row.nonzero()[:, 0]
                share = body.weights[used] * row[used, None]
                rows.append(torch.einsum("vj,svx->sjx", share, vertices[:, used]))
            self.moments = torch.stack(rows, dim=1)
        self.count = len(matrix)

    @classmethod
    def joined(cls, *parts: Points) -> Points:
        """All points of `parts`, in order."""
        whole = cls.__new__(cls)
        whole.weights = torch.cat([p.weights for p in parts])  # (P,J)
        whole.moments = torch.cat([p.moments for p in parts], dim=1)  # (S+1,P,J,3)
        whole.count = len(whole.weights)
        return whole


@dataclass(frozen=True)
class Linearised:
    """Points (B,P,3) of a pose and their derivatives.

    arms (B,P,G,3): turns ω (G,3) of the bone groups move the points by Σ ω × arm. by_shape (B,P,3,S).
    """

    points: Tensor
    arms: Tensor
    by_shape: Tensor

    def jacobian(self) -> Tensor:
        """(B, P, 3, 3G + S + 3): turns, shape, translation."""
        x, y, z = self.arms.unbind(-1)
        zero = torch.zeros_like(x)
        # ω × a = −[a]× ω
        turns = torch.stack([zero, z, -y, -z, zero, x, y, -x, zero], dim=-1).unflatten(-1, (3, 3))  # (B,P,G,3,3)
        turns = turns.permute(0, 1, 3, 2, 4).flatten(3)
        shift = torch.eye(3, device=x.device, dtype=x.dtype).expand(*x.shape[:2], 3, 3)
        return torch.cat([turns, self.by_shape, shift], dim=-1)


class Rig:
    """Fits a body's pose and shape to points.

    Args:
        body: the full body. points: how many of its vertices a mesh is fitted by (evenly spread, chosen once).
    """

    def __init__(self, body: Body, points: int = 200):
        self.body = body
        groups, names = [], []
        for name in body.joint_names:
            carrier = next((c for p, c in CARRIED_BY.items() if name.startswith(p)), None)
            if carrier:
                groups.append(names.index(f"{carrier}.{name[-1]}"))
            else:
                groups.append(len(names))
                names.append(name)
        self.group = torch.tensor(groups)
        self.group_count = len(names)
        self.parent = torch.tensor([max(0, p) for p in body.parents])
        below = torch.zeros(body.joint_count, body.joint_count)
        for joint in range(body.joint_count):
            at = joint
            while at >= 0:
                below[joint, at] = 1  # joint lies in the subtree of `at`
                at = body.parents[at]
        self.below = below
        self.vertex_indices = _spread(body.mean.numpy(), points)
        self.surface = Points(body, self.vertex_indices)

    def rest_pose(self, count: int) -> Pose:
        """The T-pose of the mean body, `count` times."""
        eye = torch.eye(3).expand(count, self.body.joint_count, 3, 3)
        return Pose(eye, torch.zeros(count, self.body.shape_count), torch.zeros(count, 3))

    def linearise(self, points: Points, pose: Pose) -> Linearised:
        """Points of a pose with their derivatives."""
        body, count = self.body, len(pose.shape)
        heads = body.heads(pose.shape)
        turned = pose.rotations @ body.t_pose(heads)
        bone = heads - heads[:, self.parent]
        step = (turned[:, self.parent] @ bone[..., None])[..., 0]
        bone_shape = body.head_basis - body.head_basis[:, self.parent]  # (S,J,3)
        step_shape = torch.einsum("bjxy,sjy->bjxs", turned[:, self.parent], bone_shape)
        posed, posed_shape = [heads[:, 0]], [body.head_basis[:, 0].T.expand(count, 3, -1)]
        for joint in range(1, body.joint_count):
            parent = body.parents[joint]
            posed.append(posed[parent] + step[:, joint])
            posed_shape.append(posed_shape[parent] + step_shape[:, joint])
        posed, posed_shape = torch.stack(posed, 1), torch.stack(posed_shape, 1)  # (B,J,3), (B,J,3,S)

        ones = pose.shape.new_ones(count, 1)
        moments = torch.tensordot(torch.cat((ones, pose.shape), 1), points.moments, dims=1)  # (B,P,J,3)
        local = moments - points.weights[..., None] * heads[:, None]
        own = torch.einsum("bjxy,bpjy->bpjx", turned, local)
        value = own.sum(2) + torch.einsum("pj,bjx->bpx", points.weights, posed) + pose.translation[:, None]

        carried = points.weights @ self.below  # (P,J): share of a point below each joint
        arms = own.index_add(2, self.parent[1:], carried[:, 1:, None] * step[:, None, 1:])
        grouped = arms.new_zeros(count, points.count, self.group_count, 3).index_add(2, self.group, arms)

        head_shape = posed_shape - torch.einsum("bjxy,sjy->bjxs", turned, body.head_basis)
        by_shape = torch.einsum("bjxy,spjy->bpxs", turned, points.moments[1:])
        by_shape = by_shape + torch.einsum("pj,bjxs->bpxs", points.weights, head_shape)
        return Linearised(value, grouped, by_shape)

    def moved(self, pose: Pose, change: Tensor) -> Pose:
        """The pose after a step (B, 3G + S + 3) of `Linearised.jacobian`'s unknowns."""
        turns = change[:, : 3 * self.group_count].unflatten(1, (-1, 3))
        shape = change[:, 3 * self.group_count : -3]
        before = self.body.t_pose(self.body.heads(pose.shape))
        after = self.body.t_pose(self.body.heads(pose.shape + shape))
        # The turn applies to the bone as it lies, so the T-pose's own dependence on shape is taken out again.
        rotations = matrix_from_axis_angle(turns)[:, self.group] @ pose.rotations @ before @ after.mT
        return Pose(rotations, pose.shape + shape, pose.translation + change[:, -3:])

    def align(self, points: Points, targets: Tensor, pose: Pose) -> Pose:
        """Every bone turned on its own to the targets (B,P,3) it carries: a weighted Procrustes problem per bone."""
        body = self.body
        heads = body.heads(pose.shape)
        ones = pose.shape.new_ones(len(targets), 1)
        rest = torch.tensordot(torch.cat((ones, pose.shape), 1), points.moments, dims=1)  # (B,P,J,3), weighted
        grouped = torch.zeros(points.count, self.group_count).index_add(1, self.group, points.weights)
        total = grouped.sum(0).clamp_min(1e-6)
        source = rest.new_zeros(len(targets), points.count, self.group_count, 3).index_add(2, self.group, rest)
        target_mean = torch.einsum("pg,bpx->bgx", grouped, targets) / total[:, None]
        source_mean = source.sum(1) / total[:, None]
        source = source - grouped[..., None] * source_mean[:, None]
        covariance = torch.einsum("bpx,bpgy->bgxy", targets, source)
        covariance = covariance - torch.einsum("bgx,bpgy->bgxy", target_mean, source)
        turned = nearest_rotation(covariance)[:, self.group]
        rotations = turned @ body.t_pose(heads).mT
        aligned = replace(pose, rotations=rotations)
        value = self.linearise(points, aligned).points
        return replace(aligned, translation=aligned.translation + (targets - value).mean(1))

    def fit(self, vertices: Tensor, steps: int = 3, shape_weight: float = 0.001, turn_weight: float = 0.003) -> Pose:
        """The rig of meshes (B,V,3), in the axes they are in.

        Args:
            steps: Gauss–Newton steps after the closed form.
            shape_weight: metres that one standard deviation of shape costs.
            turn_weight: metres that a radian of a step costs.
        """
        targets = vertices[:, self.vertex_indices]
        pose = self.align(self.surface, targets, self.rest_pose(len(targets)))
        for _ in range(steps):
            pose = self._step(pose, targets, shape_weight, turn_weight)
        return pose

    def _step(self, pose: Pose, targets: Tensor, shape_weight: float, turn_weight: float) -> Pose:
        now = self.linearise(self.surface, pose)
        jacobian = now.jacobian().flatten(1, 2)
        residual = (targets - now.points).flatten(1)
        normal = jacobian.mT @ jacobian
        right = (jacobian.mT @ residual[..., None])[..., 0]
        turns = 3 * self.group_count
        points = self.surface.count
        diagonal = normal.new_full((normal.shape[-1],), 1e-6)
        diagonal[:turns] = points * turn_weight**2
        diagonal[turns:-3] = points * shape_weight**2
        right[:, turns:-3] -= points * shape_weight**2 * pose.shape
        change = torch.linalg.solve(normal + torch.diag(diagonal), right)
        return self.moved(pose, change)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation R that maximises trace(Rᵀ M), for matrices (…,3,3)."""
    u, _, v = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ v).sign()
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], dim=-1)
    return u @ v


def _spread(points: np.ndarray, count: int) -> Tensor:
    """Indices (count) of points that cover (V,3) evenly: farthest first, from the topmost."""
    chosen = [int(points[:, 1].argmax())]
    distance = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, np.square(points - points[chosen[-1]]).sum(1))
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)
