"""How plausible a pose is: spheres along the limbs that run into each other, and joints bent too far.

Both measures work on the usual 22 joints with the proportions of a body's mean shape, batched and differentiable.
`Judge` holds meshes against them, through the rig under each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mega_backend.body import Body
from mega_backend.rig import Rig
from mega_backend.rotations import (
    axis_angle_from_quaternion,
    local_from_world,
    matrix_from_quaternion,
    multiply,
    quaternion_from_matrix,
)

JOINTS = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3",
    "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
BEYOND_DEGREES = 10.0
"""How far a joint may pass its range and still count as inside: the ranges and the rig are no better than that."""
INTO_MILLIMETRES = 30.0
"""How far the worst pair of spheres may run into each other: flesh gives way, and spheres are no limbs."""
FITTED_TOGETHER = 25
# The bone whose turn is the joint's; of the feet it is the toes, which turn half as far.
_BONES = (
    "root", "upperleg02.L", "upperleg02.R", "spine04", "lowerleg01.L", "lowerleg01.R", "spine02", "foot.L", "foot.R",
    "spine01", "toe3-1.L", "toe3-1.R", "neck02", "clavicle.L", "clavicle.R", "head", "upperarm02.L", "upperarm02.R",
    "lowerarm01.L", "lowerarm01.R", "wrist.L", "wrist.R",
)  # fmt: skip
_HEADS = (
    "root", "upperleg01.L", "upperleg01.R", "spine04", "lowerleg01.L", "lowerleg01.R", "spine02", "foot.L", "foot.R",
    "spine01", "toe3-1.L", "toe3-1.R", "neck01", "clavicle.L", "clavicle.R", "head", "upperarm01.L", "upperarm01.R",
    "lowerarm01.L", "lowerarm01.R", "wrist.L", "wrist.R",
)  # fmt: skip
_GROUPS = ("torso", "head", "left_arm", "right_arm", "left_thigh", "right_thigh", "left_shank", "right_shank")
# Groups that may not run into each other; thighs only with their lower halves.
_PAIRS = (
    ("torso", "left_arm"), ("torso", "right_arm"), ("head", "left_arm"), ("head", "right_arm"),
    ("left_arm", "right_arm"), ("left_arm", "left_thigh"), ("left_arm", "right_thigh"), ("right_arm", "left_thigh"),
    ("right_arm", "right_thigh"),
    ("left_arm", "left_shank"), ("left_arm", "right_shank"), ("right_arm", "left_shank"), ("right_arm",
    "right_shank"),
    ("left_thigh", "right_thigh"), ("left_shank", "right_shank"), ("left_shank", "right_thigh"),
    ("left_thigh", "right_shank"), ("torso", "left_shank"), ("torso", "right_shank"), ("torso", "left_thigh"),
    ("torso", "right_thigh"), ("head", "left_thigh"), ("head", "right_thigh"), ("head", "left_shank"),
    ("head", "right_shank"),
)  # fmt: skip

_LIMITS_DEGREES = {
    # About x, y, z of the joint's rotation vector, for a left joint: lowest, highest.
    "hip": ((-135, 60), (-50, 75), (-35, 80)),
    "knee": ((-5, 155), (-30, 30), (-20, 20)),
    "ankle": ((-45, 60), (-45, 45), (-35, 35)),
    "foot": ((-60, 60), (-15, 15), (-15, 15)),
    "spine1": ((-35, 50), (-35, 35), (-35, 35)),
    "spine2": ((-30, 40), (-30, 30), (-30, 30)),
    "spine3": ((-25, 35), (-25, 25), (-25, 25)),
    "neck": ((-40, 40), (-50, 50), (-35, 35)),
    "head": ((-45, 45), (-55, 55), (-40, 40)),
    "collar": ((-25, 25), (-35, 35), (-20, 40)),
    "shoulder": ((-120, 120), (-150, 80), (-110, 120)),
    "elbow": ((-45, 25), (-155, 10), (-20, 95)),
    "wrist": ((-110, 110), (-35, 35), (-85, 85)),
}


def world_quaternions(local: Tensor) -> Tensor:
    """World quaternions (N, 22, 4) of local ones."""
    world: list[Tensor] = []
    for joint, parent in enumerate(PARENTS):
        world.append(local[:, joint] if parent < 0 else multiply(world[parent], local[:, joint]))
    return torch.stack(world, dim=1)


def usual_joints(body: Body, rotations: Tensor) -> Tensor:
    """Local quaternions (N, 22, 4) of the usual 22 joints of a posed body, world rotations (N, J, 3, 3).

    Leaves out fingers, and how turns spread over a limb's two bones.
    """
    world = [rotations[:, body.joint_names.index(bone)] for bone in _BONES]
    for joint, parent in enumerate(PARENTS):
        if JOINTS[joint].endswith("foot"):
            world[joint] = world[joint] @ world[parent].mT @ world[joint]
    return quaternion_from_matrix(local_from_world(torch.stack(world, dim=1), PARENTS))


class Plausibility:
    """Measures poses of the 22 joints (N, 22, 4) local quaternions, for the mean shape of a body."""

    def __init__(self, body: Body) -> None:
        heads = body.head_mean[None]
        identity = torch.eye(3, device=heads.device).expand(1, body.joint_count, 3, 3)
        posed = body.posed_heads(identity, heads.new_zeros(1, body.shape_count))[0]
        at = posed[[body.joint_names.index(name) for name in _HEADS]]
        self.offsets = at - at[[max(parent, 0) for parent in PARENTS]]
        joints, points, radii, groups = [], [], [], []

        def add(group: str, joint: str, end: str | Tensor, radius: float, *places: float) -> None:
            reach = self.offsets[JOINTS.index(end)] if isinstance(end, str) else end
            for place in places:
                joints.append(JOINTS.index(joint))
                points.append(reach * place)
                radii.append(radius)
                groups.append(_GROUPS.index(group))

        vector = at.new_tensor
        add("torso", "pelvis", vector([0.09, -0.02, -0.02]), 0.10, -1, 0, 1)
        add("torso", "spine1", vector([0.07, 0.05, 0.0]), 0.10, -1, 1)
        add("torso", "spine2", vector([0.06, 0.04, 0.01]), 0.10, -1, 1)
        add("torso", "spine3", vector([0.09, 0.0, 0.01]), 0.11, -1, 0, 1)
        add("torso", "neck", vector([0.0, 1.0, 0.0]), 0.055, 0.03)
        add("head", "head", vector([0.0, 0.07, 0.04]), 0.085, 0.5, 1.2)
        for side, sign in (("left", 1.0), ("right", -1.0)):
            add(f"{side}_arm", f"{side}_shoulder", f"{side}_elbow", 0.04, 0.8)
            add(f"{side}_arm", f"{side}_elbow", f"{side}_wrist", 0.035, 0.1, 0.4, 0.7, 1.0)
            add(f"{side}_arm", f"{side}_wrist", vector([sign, -0.1, 0.0]), 0.03, 0.05, 0.1, 0.15)
            add(f"{side}_thigh", f"{side}_hip", f"{side}_knee", 0.06, 0.5, 0.75, 1.0)
            add(f"{side}_shank", f"{side}_knee", f"{side}_ankle", 0.045, 0.25, 0.5, 0.75, 1.0)
            add(f"{side}_shank", f"{side}_ankle", f"{side}_foot", 0.04, 0.6, 1.2)
        self.joints = torch.as_tensor(joints, device=at.device)
        self.points, self.radii = torch.stack(points), vector(radii)
        group = torch.as_tensor(groups, device=at.device)
        allowed = torch.zeros(len(joints), len(joints), dtype=torch.bool, device=at.device)
        for one, other in _PAIRS:
            allowed |= (group[:, None] == _GROUPS.index(one)) & (group[None] == _GROUPS.index(other))
        self.first, self.second = allowed.nonzero(as_tuple=True)
        self.touching = self.radii[self.first] + self.radii[self.second]
        limits = []
        for name in JOINTS:
            side, _, plain = name.rpartition("_")
            bounds = vector(_LIMITS_DEGREES.get(plain, ((-360, 360),) * 3))
            if side == "right":
                # Mirroring keeps the turn about x and flips those about y and z.
                bounds = torch.stack((bounds[0], -bounds[1].flip(0), -bounds[2].flip(0)))
            limits.append(torch.deg2rad(bounds))
        self.limits = torch.stack(limits)

    def positions(self, local: Tensor) -> tuple[Tensor, Tensor]:
        """Joints' positions (N, 22, 3) relative to the pelvis, and world rotations (N, 22, 3, 3)."""
        world = matrix_from_quaternion(world_quaternions(local))
        parents = [max(parent, 0) for parent in PARENTS]
        steps = (world[:, parents] @ self.offsets[:, :, None])[..., 0]
        places = [torch.zeros_like(steps[:, 0])]
        for joint in range(1, len(JOINTS)):
            places.append(places[PARENTS[joint]] + steps[:, joint])
        return torch.stack(places, dim=1), world

    def _depths(self, local: Tensor) -> Tensor:
        places, world = self.positions(local)
        centres = places[:, self.joints] + (world[:, self.joints] @ self.points[:, :, None])[..., 0]
        return self.touching - (centres[:, self.first] - centres[:, self.second]).norm(dim=-1)

    def intersection(self, local: Tensor, tolerance: float = 0.015) -> Tensor:
        """Metres (N) that limbs run into each other or the trunk, summed over spheres; `tolerance` of each is free."""
        return (self._depths(local) - tolerance).clamp_min(0).sum(1)

    def deepest(self, local: Tensor) -> Tensor:
        """Metres (N) that the worst pair of spheres run into each other; 0 where none touch."""
        return self._depths(local).amax(1).clamp_min(0)

    def excess(self, local: Tensor) -> Tensor:
        """Radians (N, 22) by which each joint is bent beyond its range."""
        turn = axis_angle_from_quaternion(local)
        low, high = self.limits[..., 0], self.limits[..., 1]
        return ((turn - high).clamp_min(0) + (low - turn).clamp_min(0)).norm(dim=-1)


class Verdict(NamedTuple):
    """What is said of N meshes: degrees (N) that the worst joint passes its range, millimetres (N) that the worst pair
    of spheres run into each other, and millimetres (N) between mesh and rig."""

    beyond: Tensor
    into: Tensor
    fit: Tensor

    @property
    def badness(self) -> Tensor:
        """(N): below 1 a mesh is plausible."""
        return torch.maximum(self.beyond / BEYOND_DEGREES, self.into / INTO_MILLIMETRES)


class Judge:
    """Says how plausible meshes of a body are, by the poses of the rigs under them."""

    def __init__(self, body: Body, rig: Rig | None = None) -> None:
        self.body, self.rig, self.measure = body, rig or Rig(body), Plausibility(body)

    @torch.no_grad()
    def __call__(self, vertices: Tensor) -> Verdict:
        """vertices (N, V, 3) of the full body, anywhere in space, upright or not."""
        local, fit = [], []
        for part in vertices.split(FITTED_TOGETHER):
            pose = self.rig.fit(part)
            fit.append((pose.vertices(self.body) - part).norm(dim=-1).mean(1))
            local.append(usual_joints(self.body, pose.rotations))
        joints = torch.cat(local)
        beyond = torch.rad2deg(self.measure.excess(joints)).amax(1)
        return Verdict(beyond, 1000 * self.measure.deepest(joints), 1000 * torch.cat(fit))
