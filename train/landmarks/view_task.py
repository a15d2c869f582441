"""What both stages learn from: bodies of a bank under fresh views, of which some tokens are known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mega_backend.body import Body
from mega_backend.rotations import matrix_from_6d
from train import metrics
from train.config import UserError
from train.data import views
from train.data.bank import Bank
from train.loop import Batch, Task
from train.pretrain import draw_visible

from .config import HmrConfig

VALIDATION = {
    "whole": views.ViewOptions().benign(),
    "poor": views.ViewOptions().benign(poor=1.0),
    "flat": views.ViewOptions(cut_off=0.0, occluded=0.0, missing=0.0, has_estimate=0.0),
    "any": views.ViewOptions(),
}
"""The views that validation looks at, by name."""


class ViewTask(Task):
    """Bodies of a bank under fresh synthetic views, drawn where the network is."""

    data_on_device = True

    def __init__(self, config: HmrConfig) -> None:
        super().__init__()
        self.config = config
        self.bank, self.validation = Bank.load(config.data.bank), Bank.load(config.data.validation)
        self.errors = None
        if config.data.detections:
            from train.data.detections import Detections

            seen = Detections.load(*config.data.detections)
            body = Body.bundled()
            bodies = seen.bank(body.subset(torch.arange(1)))
            self.errors = views.measured(bodies.landmarks, seen.views, seen.true_landmarks)
        if self.bank.latents is None:
            raise UserError(
                f"{config.data.bank} holds no latents: encode it with `python -m train.data.bank --tokenizer`"
            )

    def shard(self, step: int, shard: int, generator: torch.Generator) -> Batch:
        self.bank = self.bank.to(generator.device)
        index = torch.randint(len(self.bank), (self.config.data.batch,), generator=generator, device=generator.device)
        errors = None if self.errors is None else views.Measured(*(part.to(generator.device) for part in self.errors))
        return self.batch(self.bank, index, generator, views.ViewOptions(), errors)

    @staticmethod
    def batch(
        bank: Bank,
        index: Tensor,
        generator: torch.Generator,
        options: views.ViewOptions,
        errors: views.Measured | None = None,
    ) -> Batch:
        """Features and truth of one view of each body."""
        view = views.draw(bank.landmarks[index], bank.root[index], generator, options, errors)
        batch = {
            "features": view.features,
            "rotation": view.rotation,
            "camera": view.camera,
            "joints": bank.joints[index],
            "latents": bank.latents[index].float(),
        }
        if bank.tokens is not None:
            batch["tokens"] = bank.tokens[index].long()
        return batch

    def pose_losses(self, rotation_6d: Tensor, camera: Tensor, batch: Batch) -> dict[str, Tensor]:
        """MSE between rotation matrices; L1 between the true joints under the predicted and the true projection."""
        rotation = matrix_from_6d(rotation_6d.float())
        predicted = project(camera.float(), batch["joints"] @ rotation.mT)
        true = project(batch["camera"], batch["joints"] @ batch["rotation"].mT)
        return {
            "rotation": F.mse_loss(rotation, batch["rotation"]),
            "camera": (predicted - true).abs().clamp(max=2.0).mean(),
        }

    def held_out(self, count: int = 1000, options: views.ViewOptions | None = None) -> Batch:
        """The first bodies of the validation bank under fixed views."""
        index = torch.arange(min(count, len(self.validation)))
        generator = torch.Generator().manual_seed(20)  # on the CPU: the same views on every device
        batch = self.batch(self.validation, index, generator, options or views.ViewOptions().benign())
        device = next(self.parameters()).device
        return {name: value.to(device) for name, value in batch.items()}


def project(camera: Tensor, points: Tensor) -> Tensor:
    """Weak perspective: camera (B, 3) = s, tx, ty and points (B, N, 3) in camera axes → crop coordinates (B, N, 2)."""
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])


def draw_known(count: int, parts: Tensor, generator: torch.Generator, config: HmrConfig) -> Tensor:
    """Which tokens (count, T) of each body are known; parts (T): the body part of each. On the generator's device.

    Some bodies know no token, as when an answer begins; some all, as when the rotation is asked for; the others know
    some at random places or whole parts of the body.
    """
    device = generator.device

    def uniform(width: int) -> Tensor:
        return torch.rand(count, width, generator=generator, device=device)

    known = draw_visible(torch.zeros(count, len(parts), dtype=torch.long, device=device), generator)
    kept = uniform(int(parts.max()) + 1) < uniform(1)
    known = torch.where(uniform(1) < 0.25, kept[:, parts.long().to(device)], known)
    kind = uniform(1)
    known = known & (kind >= config.nothing_known)
    return known | (kind >= 1 - config.all_known)


def weighted(losses: dict[str, Tensor], config: HmrConfig) -> Tensor:
    """The sum of the losses, each by the weight the configuration gives it (1 where it names none)."""
    return sum(getattr(config, f"{name}_weight", 1.0) * loss for name, loss in losses.items())


def degrees(rotation_6d: Tensor, rotation: Tensor) -> Tensor:
    """Angle (B) between predicted and true rotations."""
    return metrics.degrees(matrix_from_6d(rotation_6d.float()), rotation)
