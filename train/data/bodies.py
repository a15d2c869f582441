"""Random bodies to train and test on: poses and shapes together."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mega_backend.body import Body
from train.data import mocap, shapes
from train.data.poses import PoseSource, usable
from train.data.retarget import Retargeter


class BodySampler:
    """Draws posed, shaped bodies.

    Args:
        body: the full body or a subset; its device is where bodies come out.
        split: "train", "val" or "test": which actors and which shapes.
        folder: the motion capture; None for synthetic poses only (then `weights` must not ask for motion capture).
        weights: shares of poses as captured, recombined between poses, and synthetic.
        bank: number of synthetic poses held at a time; see `PoseSource`.
    """

    def __init__(
        self,
        body: Body,
        split: str,
        folder: str | Path | None,
        weights: tuple[float, float, float] = (0.3, 0.3, 0.4),
        bank: int = 4096,
    ) -> None:
        self.body, self.split = body, split
        self.retarget = Retargeter(body)
        self.poses = PoseSource(body, split, folder, weights, bank)

    def sample(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`rotations` (count, J, 3, 3), world, as for `Body.skin`, and `shape` (count, S).

        The root's rotation is the body's against the ground (Y up), so that views can be taken as a photographer
        would.
        """
        pose, fingers = self.poses.sample(count, generator)
        shape = shapes.sample(self.body, count, generator, self.split)
        return {"rotations": self.retarget(pose, fingers), "shape": shape}


def held_out(
    body: Body, folder: str | Path, split: str = "test", count: int = 500, kind: str = "mocap", seed: int = 0
) -> dict[str, Tensor]:
    """A fixed set of bodies that training never sees: `rotations` (count, J, 3, 3) and `shape` (count, S).

    Args:
        split: "test" (actors 94 and 64) or "val" (actor 131).
        kind: "mocap": poses evenly spread over the actors' recordings; "synthetic": sitting, kneeling, lying, …
    """
    generator = torch.Generator().manual_seed(seed)
    retarget = Retargeter(body)
    shape = shapes.sample(body, count, generator, split)
    if kind == "mocap":
        pose = mocap.poses(folder, split)
        pose = pose[usable(pose)]
        index = torch.linspace(0, len(pose) - 1, count).round().long()
        return {"rotations": retarget(pose[index].to(body.mean.device)), "shape": shape}
    if kind == "synthetic":
        pose, fingers = PoseSource(body, split, None, (0.0, 0.0, 1.0), bank=count).sample(count, generator)
        return {"rotations": retarget(pose, fingers), "shape": shape}
    raise ValueError(f'No kind of poses {kind!r}: use "mocap" or "synthetic".')
