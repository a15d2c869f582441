"""Synthetic poses of the usual 22 joints: standing, sitting, kneeling, crouching, bending over, lying, …

Motion capture lacks most of them. A posture is a row of ranges of anatomical angles; arms go to random places, hang
down, stretch out, or reach for a part of the own body (nearest arm of a random pool). Of two candidates, the one that
runs less into itself stays. Angles in degrees, as for a left limb: hip flexion, abduction, outward turn; knee
flexion; plantar flexion of the ankle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mega_backend.body import Body
from mega_backend.rotations import (
    conjugate,
    multiply,
    quaternion_from_axis_angle,
    quaternion_from_matrix,
    smallest_between,
)
from train.data.mocap import JOINTS, MIRROR
from train.data.plausible import Plausibility

Range = tuple[float, float]
Leg = tuple[Range, Range, Range, Range, Range]
_STAND: Leg = ((-8, 15), (-3, 14), (-10, 22), (0, 14), (-8, 8))
_SIT: Leg = ((70, 98), (-2, 26), (-8, 28), (50, 115), (-15, 22))


@dataclass(frozen=True)
class Posture:
    """Ranges of a posture. `arms` weighs how arms are found: see `ARM_MODES`.

    The right leg has the left one's ranges where it has none. Where `upright`, hip flexion is that of the thigh
    against the vertical, and the pelvis' pitch is added to it.
    """

    name: str
    weight: float
    left: Leg
    right: Leg | None = None
    pitch: Range = (-6, 10)
    roll: Range = (-4, 4)
    spine: Range = (-8, 14)
    side: Range = (-8, 8)
    turn: Range = (-14, 14)
    upright: bool = True
    arms: tuple[float, ...] = (3, 2, 1, 2, 1, 0.5, 0.5)


ARM_MODES = ("anywhere", "hanging", "forward", "own body", "own legs", "aside", "overhead")
_REST = (2, 1, 1, 3, 4, 0.1, 0.2)
_DOWN = (1, 4, 3, 1, 3, 0.4, 0.1)
_PROP = (0.5, 0.5, 8, 0, 0, 0, 0)
_LIE = (5, 1, 0.5, 3, 1, 0.7, 0.7)
_UP = (1, 0, 1, 0.5, 0, 0.5, 5)
_WIDE = (2, 1, 1, 1.5, 0.5, 5, 2)
POSTURES = (
    Posture("stand", 8, _STAND),
    Posture("arms down", 2, _STAND, arms=(0, 1, 0, 0, 0, 0, 0)),
    Posture("shifted", 2, ((5, 35), (-3, 20), (-5, 30), (10, 60), (-10, 25)), _STAND, roll=(-8, 4)),
    Posture("wide", 2, ((-5, 20), (14, 42), (0, 30), (0, 25), (-10, 10))),
    Posture("crossed ankles", 1, ((5, 18), (-16, -5), (-10, 15), (0, 25), (-5, 15)),
            ((-6, 5), (-12, 0), (-5, 15), (0, 8), (-5, 5))),
    Posture("step", 3, ((10, 45), (-4, 12), (-10, 15), (0, 45), (-20, 15)),
            ((-28, 0), (-4, 12), (-10, 20), (0, 60), (-15, 30))),
    Posture("lunge", 3, ((45, 100), (-5, 25), (-10, 30), (40, 115), (-25, 5)),
            ((-30, 5), (-5, 25), (-10, 30), (0, 70), (-25, 25)), spine=(-10, 25)),
    Posture("raised leg", 3, ((45, 120), (-8, 45), (-20, 35), (0, 125), (-10, 40)), _STAND, pitch=(-15, 10)),
    Posture("leg back", 2, ((-38, -5), (-5, 20), (-10, 25), (5, 125), (-5, 45)),
            ((0, 30), (-5, 10), (-10, 15), (0, 35), (-20, 5)), pitch=(0, 40)),
    Posture("tree", 1, ((40, 80), (28, 52), (25, 60), (95, 142), (-5, 30)), _STAND),
    Posture("run", 2, ((20, 75), (-5, 10), (-10, 10), (30, 120), (-15, 30)),
            ((-30, 10), (-5, 10), (-10, 15), (5, 110), (-15, 40)), pitch=(0, 25)),
    Posture("sit", 8, _SIT, pitch=(-22, 12), spine=(-5, 42), arms=_REST),
    Posture("sit forward", 3, _SIT, pitch=(5, 40), spine=(5, 50), arms=_REST),
    Posture("sit crossed", 3, ((82, 108), (-20, -6), (-12, 12), (45, 100), (-5, 30)),
            ((68, 90), (-10, 6), (-5, 15), (65, 108), (-10, 15)), pitch=(-22, 10), spine=(-5, 38), arms=_REST),
    Posture("sit ankle on knee", 2, ((72, 100), (22, 46), (35, 70), (88, 128), (-5, 25)), _SIT, pitch=(-22, 12),
            spine=(0, 40), arms=_REST),
    Posture("sit long", 3, ((72, 100), (-2, 36), (-5, 28), (0, 35), (-5, 35)),
            ((72, 100), (-2, 36), (-5, 28), (0, 60), (-5, 35)), pitch=(-30, 25), spine=(0, 45), arms=_REST),
    Posture("sit cross-legged", 3, ((80, 112), (28, 52), (32, 66), (102, 142), (5, 38)), pitch=(-20, 15),
            spine=(0, 40), arms=_REST),
    Posture("hug knees", 1.5, ((98, 125), (-4, 16), (-8, 15), (95, 148), (-5, 35)), pitch=(-25, 10), spine=(10, 50),
            arms=_REST),
    Posture("side sit", 1.5, ((60, 92), (-12, 10), (-42, -12), (88, 132), (10, 45)),
            ((60, 98), (18, 46), (28, 60), (88, 136), (5, 40)), pitch=(-15, 15), roll=(-12, 12), spine=(0, 35),
            arms=_REST),
    Posture("kneel", 3, ((-8, 28), (-2, 22), (-8, 15), (78, 118), (15, 55)), spine=(-10, 30)),
    Posture("sit on heels", 2.5, ((55, 95), (-2, 26), (-8, 15), (128, 153), (22, 55)), pitch=(-8, 20),
            spine=(-5, 40), arms=_REST),
    Posture("half kneel", 3, ((65, 105), (-5, 28), (-8, 25), (65, 115), (-25, 10)),
            ((-12, 25), (-5, 20), (-8, 20), (78, 115), (-25, 55)), pitch=(-5, 25), spine=(-5, 40)),
    Posture("squat", 4, ((72, 125), (-2, 38), (-5, 38), (85, 148), (-38, -5)), pitch=(-5, 30), spine=(5, 48)),
    Posture("half squat", 3, ((25, 78), (-2, 35), (-5, 30), (30, 90), (-32, 0)), pitch=(0, 40), spine=(0, 40)),
    Posture("bend", 4, ((-12, 15), (-3, 16), (-8, 18), (0, 32), (-12, 12)), pitch=(18, 75), spine=(0, 55),
            arms=_DOWN),
    Posture("bend deep", 2.5, ((-12, 20), (-3, 28), (-8, 20), (0, 45), (-15, 12)), pitch=(60, 105), spine=(15, 75),
            arms=_DOWN),
    Posture("pick up", 3, ((10, 65), (-3, 25), (-8, 20), (20, 105), (-28, 8)),
            ((-10, 50), (-3, 25), (-8, 20), (20, 105), (-28, 20)), pitch=(20, 70), spine=(5, 55), arms=_DOWN),
    Posture("all fours", 2.5, ((-15, 20), (-3, 18), (-8, 15), (72, 112), (10, 55)), pitch=(70, 100),
            spine=(-20, 30), arms=_PROP),
    Posture("plank", 1.5, ((-8, 35), (-3, 14), (-8, 10), (0, 14), (-20, 20)),
            ((-8, 35), (-3, 14), (-8, 10), (0, 60), (-20, 20)), pitch=(60, 95), spine=(-12, 15), upright=False,
            arms=_PROP),
    Posture("hips high", 1, ((-30, 0), (-3, 18), (-8, 10), (0, 25), (-38, 0)), pitch=(95, 130), spine=(-10, 20),
            arms=(2, 0, 0, 0, 0, 0, 6)),
    Posture("on the back", 2.5, ((-8, 32), (-3, 28), (-5, 40), (0, 45), (0, 45)),
            ((-8, 32), (-3, 28), (-5, 40), (0, 75), (0, 45)), pitch=(-98, -72), roll=(-20, 20), upright=False,
            arms=_LIE),
    Posture("on the back, knees up", 1.5, ((38, 110), (-5, 28), (-5, 20), (50, 130), (-5, 35)), pitch=(-98, -72),
            spine=(-5, 45), upright=False, arms=_LIE),
    Posture("legs up", 1, ((55, 115), (-5, 40), (-8, 25), (0, 45), (-15, 40)), pitch=(-98, -60), spine=(-5, 40),
            upright=False, arms=_LIE),
    Posture("on the belly", 2, ((-22, 8), (-3, 28), (-10, 40), (0, 95), (5, 50)), pitch=(78, 100), spine=(-45, 8),
            upright=False, arms=_LIE),
    Posture("on the side", 2.5, ((5, 115), (-10, 25), (-10, 20), (5, 135), (0, 40)),
            ((5, 115), (-10, 20), (-10, 20), (5, 135), (0, 40)), pitch=(-20, 20), roll=(70, 105), spine=(-5, 45),
            upright=False, arms=_LIE),
    Posture("recline", 2, ((50, 88), (-2, 26), (-8, 30), (10, 95), (-5, 30)), pitch=(-60, -20), spine=(5, 40),
            arms=_REST),
    Posture("bend back", 1, _STAND, pitch=(-20, 5), spine=(-55, -15)),
    Posture("bend aside", 2, _STAND, ((-5, 15), (5, 35), (-5, 25), (0, 25), (-8, 8)), roll=(-12, 12), side=(18, 55)),
    Posture("twist", 2, _STAND, turn=(22, 62)),
    Posture("split", 0.8, ((55, 92), (-5, 15), (-10, 25), (0, 18), (0, 40)),
            ((-65, -20), (-5, 15), (-10, 35), (0, 18), (0, 45)), pitch=(-5, 25)),
    Posture("straddle", 1, ((5, 85), (32, 62), (10, 50), (0, 18), (0, 35)), pitch=(-10, 50), spine=(0, 45)),
    Posture("side lunge", 2, ((5, 45), (35, 72), (35, 85), (35, 105), (-20, 10)),
            ((-10, 20), (20, 50), (-10, 40), (0, 22), (-10, 20)), pitch=(-8, 20), spine=(-10, 25), arms=_WIDE),
    Posture("deep side lunge", 1, ((55, 115), (15, 48), (10, 45), (80, 145), (-35, 0)),
            ((0, 40), (32, 62), (-10, 40), (0, 18), (-20, 20)), pitch=(0, 30), spine=(0, 40), arms=_WIDE),
    Posture("long lunge", 1.5, ((60, 108), (-5, 20), (-10, 20), (60, 120), (-25, 5)),
            ((-55, -15), (-5, 15), (-10, 30), (0, 35), (-15, 40)), pitch=(-8, 35), spine=(-25, 20), arms=_WIDE),
    Posture("triangle", 1, ((-8, 20), (18, 45), (0, 80), (0, 12), (-10, 15)), side=(15, 55), roll=(-30, 25),
            arms=_WIDE),
    Posture("climb", 1.5, ((50, 115), (0, 48), (0, 45), (50, 125), (-25, 15)),
            ((-5, 35), (-5, 25), (0, 30), (0, 55), (-15, 40)), pitch=(-15, 20), arms=_UP),
    Posture("cycle", 1, ((28, 70), (-5, 12), (-8, 15), (25, 75), (-10, 30)),
            ((75, 108), (-5, 12), (-8, 15), (80, 118), (-15, 20)), pitch=(15, 55), spine=(0, 40), arms=_PROP),
    Posture("reach up", 2, _STAND, arms=_UP),
    Posture("arms out", 1.5, _STAND, arms=_WIDE),
    Posture("handstand", 0.5, ((-25, 60), (-5, 40), (-8, 20), (0, 70), (0, 45)), pitch=(160, 195), upright=False,
            arms=(0.5, 0, 0, 0, 0, 0, 6)),
    Posture("jump", 1.5, ((-25, 80), (0, 45), (-10, 25), (0, 120), (0, 45))),
)  # fmt: skip

# Places that hands go to, in the frame of the chest (joint spine3) of an average adult, for the left hand, metres.
_OWN_BODY = {
    "hip": (0.17, -0.28, 0.04), "belly": (0.02, -0.24, 0.17), "other elbow": (-0.10, -0.12, 0.19),
    "other shoulder": (-0.13, 0.05, 0.15), "chest": (0.03, 0.0, 0.20), "mouth": (0.03, 0.17, 0.17), "ear": (0.13,
    0.24, 0.05),
    "top of the head": (0.08, 0.40, 0.02), "behind the head": (0.11, 0.27, -0.10), "forehead": (0.05, 0.31, 0.15),
    "behind the back": (0.06, -0.26, -0.16), "pocket": (0.20, -0.36, 0.06), "lap": (0.06, -0.36, 0.20),
    "overhead": (0.12, 0.62, 0.05), "chin": (0.04, 0.12, 0.18), "far overhead": (0.02, 0.60, 0.10),
}  # fmt: skip
# Twist of the upper arm by its direction, degrees: measured on motion capture, in 1, x, y, z, xy, xz, yz, xx, yy, zz.
_TWIST = (-4, 22, -34, -38, 19, -18, -17, -35, 3, 28)
# The elbow's hinge in the frame of the upper arm, left: motion capture holds it tilted by 30°.
_ELBOW = (-0.08, -0.86, 0.50)
_SYMMETRIC = 0.4


def mirror(local: Tensor) -> Tensor:
    """Poses (N, 22, 4) with left and right exchanged."""
    return local[:, list(MIRROR)] * local.new_tensor([1.0, 1.0, -1.0, -1.0])


def _about(axis: int, degrees: Tensor) -> Tensor:
    vector = torch.zeros(*degrees.shape, 3, device=degrees.device)
    vector[..., axis] = torch.deg2rad(degrees)
    return quaternion_from_axis_angle(vector)


def arm(
    direction: Tensor, twist: Tensor, elbow: Tensor, pronation: Tensor, flexion: Tensor, deviation: Tensor
) -> Tensor:
    """A left arm's local quaternions (N, 4 joints, 4): collar, shoulder, elbow, wrist.

    direction: (N, 3) of the upper arm in the chest's frame. Others (N) in degrees; `twist` is added to the usual one.
    """
    x, y, z = direction.unbind(-1)
    one = torch.ones_like(x)
    usual = torch.stack((one, x, y, z, x * y, x * z, y * z, x * x, y * y, z * z), dim=-1) @ direction.new_tensor(_TWIST)
    swing = quaternion_from_matrix(
        smallest_between(direction.new_tensor([1.0, 0.0, 0.0]).expand_as(direction), direction)
    )
    total = multiply(swing, _about(0, (usual + twist).clamp(-100, 100)))
    # The collar takes a share of raising the arm and of reaching forward or back.
    lift = torch.rad2deg(torch.asin(y.clamp(-1, 1))).clamp_min(-20) * 0.22
    reach = -torch.rad2deg(torch.asin(z.clamp(-1, 1))) * 0.12
    collar = multiply(_about(2, lift), _about(1, reach))
    hinge = direction.new_tensor(_ELBOW)
    bend = quaternion_from_axis_angle(torch.deg2rad(elbow)[:, None] * hinge / hinge.norm())
    hand = multiply(_about(0, pronation), multiply(_about(2, -flexion), _about(1, deviation)))
    return torch.stack((collar, multiply(conjugate(collar), total), bend, hand), dim=1)


class SyntheticPoses:
    """Draws synthetic poses. Everything random comes from the generators given.

    Args:
        body: gives the proportions and the device.
        weights: postures' names to weights, in place of their own.
        pool: number of random arms kept.
        seed: of the pool.
    """

    def __init__(self, body: Body, weights: dict[str, float] | None = None, pool: int = 4000, seed: int = 0) -> None:
        self.device = body.mean.device
        self.plausibility = Plausibility(body)
        names = [posture.name for posture in POSTURES]
        unknown = set(weights or {}) - set(names)
        if unknown:
            raise ValueError(f"No posture {sorted(unknown)[0]!r}: use some of {', '.join(names)}.")
        chosen = [weights.get(name, 0.0) for name in names] if weights else [posture.weight for posture in POSTURES]
        self.weights = torch.tensor(chosen)
        legs = torch.tensor([[p.left, p.right or p.left] for p in POSTURES], dtype=torch.float32)
        trunk = torch.tensor([[p.pitch, p.roll, p.spine, p.side, p.turn] for p in POSTURES], dtype=torch.float32)
        self.legs, self.trunk = legs.to(self.device), trunk.to(self.device)
        self.upright = torch.tensor([p.upright for p in POSTURES], device=self.device)
        self.arm_weights = torch.tensor([p.arms for p in POSTURES], device=self.device)
        self.targets = torch.tensor(list(_OWN_BODY.values()), device=self.device)
        self._make_pool(pool, torch.Generator().manual_seed(seed))

    # Arms

    def _random(self, *shape: int, generator: torch.Generator) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device).to(self.device)

    def _normal(self, *shape: int, generator: torch.Generator) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device).to(self.device)

    def _hand(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random pronation, flexion and deviation (count) of a hand, degrees."""
        pronation = -85 + 150 * self._random(count, generator=generator)
        flexion = (20 * self._normal(count, generator=generator)).clamp(-65, 70)
        return pronation, flexion, (8 * self._normal(count, generator=generator)).clamp(-25, 25)

    def _make_pool(self, count: int, generator: torch.Generator) -> None:
        """Random left arms within reach that do not run into the body, and where their wrists are from the chest."""
        arms, wrists, found = [], [], 0
        while found < count:
            direction = functional.normalize(self._normal(4 * count, 3, generator=generator), dim=-1)
            x, y, z = direction.unbind(-1)
            reach = (z > -0.7) & ((y < 0.2) | (z > -0.4)) & ((x > -0.05) | (z > 0.35) | (y > 0.85)) & (x > -0.6)
            direction = direction[reach]
            number = len(direction)
            twist = 28 * self._normal(number, generator=generator)
            elbow = 150 * self._random(number, generator=generator)
            four = arm(direction, twist, elbow, *self._hand(number, generator))
            pose = self._neutral(number)
            pose[:, self._arm_joints("left")] = four
            free = self.plausibility.intersection(pose) == 0
            places, _ = self.plausibility.positions(pose[free])
            wrists.append(places[:, JOINTS.index("left_wrist")] - places[:, JOINTS.index("spine3")])
            arms.append(four[free])
            found += int(free.sum())
        self.pool, self.pool_wrists = torch.cat(arms)[:count], torch.cat(wrists)[:count]

    @staticmethod
    def _arm_joints(side: str) -> list[int]:
        return [JOINTS.index(f"{side}_{joint}") for joint in ("collar", "shoulder", "elbow", "wrist")]

    def _neutral(self, count: int) -> Tensor:
        pose = torch.zeros(count, len(JOINTS), 4, device=self.device)
        pose[..., 0] = 1
        for side, sign in (("left", -1.0), ("right", 1.0)):
            turn = torch.full((count,), sign * 75.0, device=self.device)
            pose[:, JOINTS.index(f"{side}_shoulder")] = _about(2, turn)
        return pose

    def _arm(self, pose: Tensor, mode: Tensor, side: str, generator: torch.Generator) -> Tensor:
        """Arms (N, 4, 4) of one side for poses whose trunk and legs are set, by mode (N), as for a left arm."""
        count = len(pose)
        sign = pose.new_tensor([1.0, 1.0, 1.0] if side == "left" else [-1.0, 1.0, 1.0])
        chosen = self.pool[(self._random(count, generator=generator) * len(self.pool)).long()]
        places, world = self.plausibility.positions(pose)
        chest = world[:, JOINTS.index("spine3")]
        # Reaching: the nearest arm of the pool to a place on the own body or legs, a few centimetres off.
        spots = self.targets[(self._random(count, generator=generator) * len(self.targets)).long()]
        along = self._random(count, generator=generator)[:, None]
        other = self._random(count, generator=generator)[:, None] < 0.2
        near = [places[:, JOINTS.index(f"{side}_{joint}")] for joint in ("hip", "knee", "ankle")]
        opposite = {"left": "right", "right": "left"}[side]
        far = [places[:, JOINTS.index(f"{opposite}_{joint}")] for joint in ("hip", "knee", "ankle")]
        leg = [torch.where(other, f, n) for n, f in zip(near, far, strict=True)]
        # From the middle of the thigh over the knee to the ankle, and just off the skin.
        on_leg = torch.where(
            along < 0.6, leg[0].lerp(leg[1], 0.4 + along), leg[1].lerp(leg[2], ((along - 0.6) * 2.5).clamp(0, 1))
        )
        shin = functional.normalize(leg[2] - leg[1], dim=-1)
        on_leg = on_leg - 0.08 * torch.where(along < 0.6, shin, torch.zeros_like(shin))
        own_leg = ((on_leg - places[:, JOINTS.index("spine3")])[:, None] @ chest)[:, 0] * sign
        places_wanted = torch.where((mode == 4)[:, None], own_leg, spots)
        places_wanted = places_wanted + 0.04 * self._normal(count, 3, generator=generator)
        reaching = ((mode == 3) | (mode == 4)).nonzero()[:, 0]
        if len(reaching):
            nearest = torch.cdist(places_wanted[reaching], self.pool_wrists).argmin(1)
            chosen = chosen.index_copy(0, reaching, self.pool[nearest])
        # Hanging or reaching in a direction of the world: down, or ahead, turning down as the chest leans over.
        noise = self._normal(count, 3, generator=generator)
        down = pose.new_tensor([0.0, -1.0, 0.0]).expand(count, 3)
        front = chest[:, :, 2] * pose.new_tensor([1.0, 0.0, 1.0])
        lean = (-chest[:, 1, 2]).clamp(0, 1)[:, None]
        ahead = functional.normalize(front + 1e-6, dim=-1) * (1 - lean) + down * lean
        outward = chest[:, :, 0] * sign[0] * 0.25
        aim = (
            torch.where((mode == 1)[:, None], down + 0.12 * noise, functional.normalize(ahead, dim=-1) + 0.25 * noise)
            + outward
        )
        direction = functional.normalize((aim[:, None] @ chest)[:, 0], dim=-1) * sign
        # What lies behind the shoulder is out of reach.
        direction = functional.normalize(
            torch.stack((direction[:, 0].clamp_min(-0.3), direction[:, 1], direction[:, 2].clamp_min(-0.6)), dim=-1),
            dim=-1,
        )
        # Aside or overhead in the chest's own frame, as for a left arm.
        wide = pose.new_tensor([1.0, 0.05, 0.05]) + 0.18 * noise
        high = pose.new_tensor([0.15, 1.0, 0.1]) + 0.16 * noise
        own = functional.normalize(torch.where((mode == 5)[:, None], wide, high), dim=-1)
        direction = torch.where((mode >= 5)[:, None], own, direction)
        bend = self._random(count, generator=generator)
        elbow = torch.where(mode == 1, 5 + 40 * bend * bend, 2 + 60 * bend * bend)
        aimed = arm(direction, 22 * self._normal(count, generator=generator), elbow, *self._hand(count, generator))
        aims = (mode == 1) | (mode == 2) | (mode >= 5)
        chosen = torch.where(aims[:, None, None], aimed, chosen)
        if side == "right":
            chosen = chosen * chosen.new_tensor([1.0, 1.0, -1.0, -1.0])
        return chosen

    # Whole poses

    def _candidates(self, posture: Tensor, generator: torch.Generator) -> Tensor:
        count = len(posture)
        legs, trunk = self.legs[posture], self.trunk[posture]
        share = self._random(count, 2, 5, generator=generator)
        # Often both legs do nearly the same.
        same = self._random(count, generator=generator)[:, None] < 0.5
        alike = share[:, 0] + 0.12 * self._normal(count, 5, generator=generator)
        share = torch.stack((share[:, 0], torch.where(same, alike.clamp(0, 1), share[:, 1])), dim=1)
        angle = legs[..., 0] + (legs[..., 1] - legs[..., 0]) * share
        amount = trunk[..., 0] + (trunk[..., 1] - trunk[..., 0]) * self._random(count, 5, generator=generator)
        pitch, roll, spine, side, turn = amount.unbind(-1)
        pose = self._neutral(count)
        pose[:, 0] = multiply(_about(2, roll), _about(0, pitch))
        upright = self.upright[posture]
        for index, name in enumerate(("left", "right")):
            flexion, abduction, outward, knee, plantar = angle[:, index].unbind(-1)
            sign = 1.0 if name == "left" else -1.0
            flexion = torch.where(upright, flexion + pitch, flexion).clamp(-70, 132)
            hip = multiply(_about(0, -flexion), multiply(_about(2, sign * abduction), _about(1, sign * outward)))
            # Abduction of a bent thigh opens it sideways: turn about the vertical rather than the body's front axis.
            opened = multiply(
                _about(1, sign * abduction), multiply(_about(0, -flexion), _about(1, sign * (outward - abduction)))
            )
            pose[:, JOINTS.index(f"{name}_hip")] = torch.where((flexion > 45)[:, None], opened, hip)
            pose[:, JOINTS.index(f"{name}_knee")] = _about(0, knee)
            yaw = 8 * self._normal(count, generator=generator)
            pose[:, JOINTS.index(f"{name}_ankle")] = multiply(_about(0, plantar), _about(1, sign * yaw))
            toes = -25 + 40 * self._random(count, generator=generator)
            pose[:, JOINTS.index(f"{name}_foot")] = _about(0, toes)
        for joint, part in (("spine1", 0.40), ("spine2", 0.35), ("spine3", 0.25)):
            bent = multiply(_about(1, part * turn), multiply(_about(2, part * side), _about(0, part * spine)))
            pose[:, JOINTS.index(joint)] = bent
        wide = torch.where(self._random(count, generator=generator) < 0.3, 1.0, 0.45)
        look = self._normal(count, 3, generator=generator).clamp(-2, 2) * wide[:, None]
        # Who bends over often lifts the head, who leans back lowers it.
        lift = 0.25 * (pitch + spine).clamp(-60, 100) * self._random(count, generator=generator)
        for joint, part in (("neck", 0.4), ("head", 0.6)):
            nod, tilt, shake = 20 * look[:, 0] - lift, 12 * look[:, 1], 32 * look[:, 2]
            bent = multiply(_about(1, part * shake), multiply(_about(2, part * tilt), _about(0, part * nod)))
            pose[:, JOINTS.index(joint)] = bent
        mode = self._modes(posture, generator)
        both = self._random(count, generator=generator) < _SYMMETRIC
        left = self._arm(pose, mode, "left", generator)
        right = self._arm(pose, self._modes(posture, generator), "right", generator)
        flipped = left * left.new_tensor([1.0, 1.0, -1.0, -1.0])
        noise = quaternion_from_axis_angle(0.08 * self._normal(count, 4, 3, generator=generator))
        right = torch.where(both[:, None, None], multiply(flipped, noise), right)
        pose[:, self._arm_joints("left")], pose[:, self._arm_joints("right")] = left, right
        return pose

    def _modes(self, posture: Tensor, generator: torch.Generator) -> Tensor:
        chances = self.arm_weights[posture].cumsum(1)
        wanted = self._random(len(posture), generator=generator)[:, None] * chances[:, -1:]
        return (wanted >= chances).sum(1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Local quaternions (count, 22, 4), the root's as seen from the ground; half of them mirrored."""
        posture = torch.multinomial(self.weights.to(generator.device), count, replacement=True, generator=generator)
        posture = posture.to(self.device)
        pose = self._candidates(posture.repeat(2), generator)
        worth = self.plausibility.intersection(pose).unflatten(0, (2, count))
        best = pose[:count].where((worth[0] <= worth[1])[:, None, None], pose[count:])
        flip = self._random(count, generator=generator) < 0.5
        return torch.where(flip[:, None, None], mirror(best), best)
