"""Random bodies to train and test on: poses and shapes together."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mega_backend.body import Body
from train.data import mocap, shapes
from train.data.retarget import Retargeter


class BodySampler:
    """Draws posed, shaped bodies.

    Args:
        body: the full body or a subset; its device is where bodies come out.
        split: "train", "val" or "test": which actors and which shapes.
        folder: the motion capture.
    """

    def __init__(self, body: Body, split: str, folder: str | Path) -> None:
        self.body, self.split = body, split
        self.retarget = Retargeter(body)
        self.poses = mocap.poses(folder, split).to(body.mean.device)

    def sample(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`rotations` (count, J, 3, 3), world, as for `Body.skin`, and `shape` (count, S)."""
        index = torch.randint(len(self.poses), (count,), generator=generator, device=generator.device)
        rotations = self.retarget(self.poses[index.to(self.poses.device)])
        return {"rotations": rotations, "shape": shapes.sample(self.body, count, generator, self.split)}
