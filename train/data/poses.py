"""Poses to train on: motion capture, limbs recombined between poses, and synthetic postures, in one stream.

Everything is batched torch on the body's device; random numbers come from the generator given, wherever that lives.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mega_backend.body import Body
from mega_backend.rotations import multiply, quaternion_from_axis_angle
from train.data import mocap
from train.data.mocap import JOINTS
from train.data.plausible import Plausibility
from train.data.retarget import RELAXED
from train.data.synthetic import SyntheticPoses, mirror

KINDS = ("mocap", "recombined", "synthetic")
_LIMBS = (
    ("left_collar", "left_shoulder", "left_elbow", "left_wrist"),
    ("right_collar", "right_shoulder", "right_elbow", "right_wrist"),
    ("left_hip", "left_knee", "left_ankle", "left_foot", "right_hip", "right_knee", "right_ankle", "right_foot"),
    ("spine1", "spine2", "spine3"),
    ("neck", "head"),
)
# Standard deviation, degrees, of the noise on each joint's rotation vector.
_NOISE = {"hip": 3, "knee": 2, "ankle": 4, "foot": 5, "shoulder": 4, "collar": 3, "elbow": 2, "neck": 4, "head": 5}
# Motion capture has no wrist flexion: about z flexion, about y deviation, degrees.
_WRIST = (4, 8, 20)
# The share of synthetic poses that were made for this very draw.
_FRESH = 0.3
# Metres that a change may make limbs run into each other further.
_RUNS_INTO = 0.03


def usable(local: Tensor) -> Tensor:
    """Which poses (N) of motion capture are free of glitches: heads, ankles and elbows within what a body can do."""
    angle = 2 * torch.acos(local[..., 0].abs().clamp(max=1))
    limits = {"head": 75, "neck": 60, "ankle": 75, "foot": 70, "spine1": 70, "knee": 160, "elbow": 160}
    fine = torch.ones(len(local), dtype=torch.bool, device=local.device)
    for joint, name in enumerate(JOINTS):
        limit = limits.get(name.rpartition("_")[2])
        if limit is not None:
            fine &= angle[:, joint] < torch.pi * limit / 180
    return fine


def fingers(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """How far fingers bend (count, 2, 10), radians: mostly relaxed hands, also open ones, fists, pointing and any."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device).to(device)

    relaxed = torch.tensor(RELAXED, device=device)
    fist = torch.tensor((0.5, 0.7, 1.3, 1.6, 1.35, 1.6, 1.35, 1.6, 1.35, 1.5), device=device)
    pointing = fist.clone()
    pointing[2:4] = 0.05
    any_hand = uniform(count, 2, 10) * fist.new_tensor((0.6, 0.8, *((1.3, 1.5) * 4)))
    kind = uniform(count, 2, 1)
    bent = relaxed * (0.5 + 1.2 * uniform(count, 2, 1))
    for bound, hand in (
        (0.35, relaxed * 0.0),
        (0.22, fist * (0.6 + 0.4 * uniform(count, 2, 1))),
        (0.10, pointing),
        (0.05, any_hand),
    ):
        bent = torch.where(kind < bound, hand, bent)
    return bent + 0.2 * (uniform(count, 2, 10) - 0.5)


class PoseSource:
    """Draws poses of the usual 22 joints.

    Args:
        body: gives proportions and device.
        split: "train", "val" or "test": whose motion capture; the synthetic poses of the splits differ too.
        folder: the motion capture; without it all poses are synthetic or recombined from those.
        weights: shares of `KINDS`.
        bank: number of synthetic poses held; an eighth as many as are drawn are made anew each time.

    A draw depends on nothing but the generator, so that training resumes where it stopped.
    """

    def __init__(
        self,
        body: Body,
        split: str,
        folder: str | Path | None = None,
        weights: tuple[float, float, float] = (0.3, 0.3, 0.4),
        bank: int = 4096,
    ) -> None:
        if len(weights) != len(KINDS) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"Pose weights must be {len(KINDS)} numbers ≥ 0 for {', '.join(KINDS)}, not {weights}.")
        if folder is None and weights[0] > 0:
            raise ValueError(
                "Poses of motion capture were asked for without its folder: name it, or set their weight to 0."
            )
        if split not in mocap.SPLITS:
            raise ValueError(f"No split {split!r}: use one of {', '.join(mocap.SPLITS)}.")
        self.device = body.mean.device
        self.weights = torch.tensor(weights, dtype=torch.float32)
        self.captured = torch.zeros(0, len(JOINTS), 4, device=self.device)
        if folder is not None:
            captured = mocap.poses(folder, split)
            self.captured = captured[usable(captured)].to(self.device)
        self.plausibility = Plausibility(body)
        self.made = self.captured[:0]
        if sum(weights[1:]) > 0:
            seed = 1 + mocap.SPLITS.index(split)
            self.synthetic = SyntheticPoses(body, seed=seed)
            self.made = self.synthetic.sample(bank, torch.Generator().manual_seed(seed))
        noise = torch.zeros(len(JOINTS), 3)
        for joint, name in enumerate(JOINTS):
            plain = name.rpartition("_")[2]
            noise[joint] = torch.tensor(_WRIST) if plain == "wrist" else _NOISE.get(plain, 2)
        noise[0] = 0
        self.noise = torch.deg2rad(noise).to(self.device)

    def _uniform(self, *shape: int, generator: torch.Generator) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device).to(self.device)

    def _draw(self, synthetic: Tensor, fresh: Tensor, generator: torch.Generator) -> Tensor:
        """Whole poses, synthetic ones (some of the `fresh`) or motion capture, half of them mirrored."""
        count = len(synthetic)
        share = self._uniform(count, generator=generator)
        anew = self._uniform(count, generator=generator) < _FRESH
        drawn = []
        for bank, taken in ((self.captured, ~synthetic), (self.made, synthetic & ~anew), (fresh, synthetic & anew)):
            if len(bank):
                drawn.append((taken, bank[(share * len(bank)).long()]))
        pose = drawn[0][1]
        for taken, candidates in drawn[1:]:
            pose = torch.where(taken[:, None, None], candidates, pose)
        flip = self._uniform(count, generator=generator) < 0.5
        return torch.where(flip[:, None, None], mirror(pose), pose)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Local quaternions (count, 22, 4), the root's as seen from the ground, and finger bends (count, 2, 10)."""
        fresh = self.synthetic.sample((count + 7) // 8, generator) if len(self.made) else self.made
        kind = torch.multinomial(self.weights.to(generator.device), count, replacement=True, generator=generator)
        kind = kind.to(self.device)
        shares = self.weights[2] / (self.weights[0] + self.weights[2]).clamp_min(1e-9)
        mixed = self._uniform(count, generator=generator) < shares
        pose = self._draw(torch.where(kind == 1, mixed, kind == 2), fresh, generator)
        chosen = (kind == 1).nonzero()[:, 0]
        if len(chosen):
            pose = pose.index_copy(0, chosen, self._recombined(pose[chosen], shares, fresh, generator))
        noise = torch.randn(count, len(JOINTS), 3, generator=generator, device=generator.device).to(self.device)
        noisy = multiply(pose, quaternion_from_axis_angle(noise * self.noise))
        return self._unless_worse(noisy, pose), fingers(count, generator, self.device)

    def _unless_worse(self, changed: Tensor, pose: Tensor) -> Tensor:
        """Changed poses where they run into themselves hardly more than before, else the poses as they were."""
        before, after = self.plausibility.intersection(torch.cat((pose, changed))).unflatten(0, (2, len(pose)))
        return torch.where((after < before + _RUNS_INTO)[:, None, None], changed, pose)

    def _recombined(self, pose: Tensor, shares: Tensor, fresh: Tensor, generator: torch.Generator) -> Tensor:
        """Poses with some limbs from other poses, where these do not run into the body."""
        mixed = pose.clone()
        for limb in _LIMBS:
            joints = [JOINTS.index(name) for name in limb]
            donor = self._draw(self._uniform(len(pose), generator=generator) < shares, fresh, generator)
            taken = self._uniform(len(pose), 1, 1, generator=generator) < 0.5
            mixed[:, joints] = torch.where(taken, donor[:, joints], mixed[:, joints])
        return self._unless_worse(mixed, pose)
