"""Training from pictures, first step: read the 33 body landmarks off crops, as a detector would.

    python -m train.hmr image_reader --run runs/image_reader sources=… validation=…

Truth comes from datasets of Anny bodies (`train.data.synthetic_pictures`): landmarks in the crop and in camera axes.
The network says how far off it expects each landmark to be; the landmark model takes that for visibility. Once there
is a landmark model (`train.hmr regressor`, `masked`), reader and model together recover people from pictures:
`image_regressor` then trains both as one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mega_backend.model import backbones
from mega_backend.model.backbones.reader import Reading
from mega_backend.people.landmarks import MAIN
from train import metrics, readings
from train.config import Config, load
from train.data.anny import AnnyBodies
from train.data.landmarks import placed
from train.data.pictures import Augmentation, Mixture
from train.images import SourceConfig, held_out, normalise, with_landmarks_of
from train.loop import Batch, LoopConfig, Task, seeded, train


class ReaderConfig(Config):
    """Training of a reader."""

    stage: Literal["image_reader"]
    loop: LoopConfig
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    validation: SourceConfig | None = None
    validation_people: int = Field(200, gt=0)
    batch: int = Field(64, gt=0, description="people of one shard of a step")
    augmentation: Augmentation = Augmentation()
    reader: dict[str, Any] = Field(default_factory=dict, description="input_size and width of the network")
    place_weight: float = Field(readings.PLACE, ge=0, description="of the 3D positions' error in metres")
    error_weight: float = Field(readings.ERROR, ge=0, description="of the likelihood of the expected errors")
    heat_weight: float = Field(readings.HEAT, ge=0, description="of the cross-entropy of the places on the heatmaps")


class ReaderTask(Task):
    """Crops in, landmarks out."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.reader = backbones.build("reader", **config.reader)
        self.size = self.reader.input_size
        whole = AnnyBodies()
        # Landmarks are exact on any subset of the vertices. Outside the module: bodies are not trained.
        self._bodies = [whole.subset(torch.arange(1))]
        sources = [with_landmarks_of(source.load(), whole) for source in config.sources]
        self._mixture = Mixture(sources, self.size, config.augmentation)
        self._held_out = None
        if config.validation:
            source = with_landmarks_of(config.validation.load(), whole)
            self._held_out = held_out(source, self.size, config.validation_people)

    def shard(self, step: int, shard: int, generator: torch.Generator) -> Batch:
        return self._mixture.batch(self.config.batch, generator)

    def _truth(self, batch: Batch) -> Tensor:
        """Landmarks (B, 33, 3) in camera axes, hip-centred."""
        device = batch["pose"].device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return placed(self._bodies[0].to(device), batch["pose"], batch["shape"])

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        reading = self.reader.read(normalise(batch["picture"]))
        losses = readings.losses(reading, batch["joints"], self._truth(batch))
        config = self.config
        total = readings.total(losses, config.place_weight, config.error_weight, config.heat_weight)
        return total, {**{k: v.detach() for k, v in losses.items()}, "skipped": batch["skipped"].sum().float()}

    def _read(self, batch: Batch) -> tuple[Batch, Reading]:
        device = next(self.reader.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        return batch, self.reader.read(normalise(batch["picture"]))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Error in % of the box side, of limbs in 3D after alignment (mm), and how well errors are foretold."""
        if self._held_out is None:
            return {}
        found: dict[str, list[Tensor]] = {"apart": [], "expected": [], "pa_mpjpe": []}
        for start in range(0, len(self._held_out["pose"]), self.config.batch):
            part = {name: value[start : start + self.config.batch] for name, value in self._held_out.items()}
            batch, reading = self._read(part)
            found["apart"].append((reading.landmarks - batch["joints"][..., :2]).norm(dim=-1))
            found["expected"].append(reading.log_error.exp())
            limbs = [points[:, list(MAIN)] for points in (reading.landmarks_3d, self._truth(batch))]
            found["pa_mpjpe"].append(metrics.aligned_distances(*limbs))
        whole = {name: torch.cat(parts) for name, parts in found.items()}
        return {
            "percent_of_box": 50 * float(whole["apart"].mean()),
            "pa_mpjpe": float(whole["pa_mpjpe"].mean()),
            "error_correlation": metrics.correlation(whole["apart"], whole["expected"]),
        }

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out crops, the true landmarks above, those read below."""
        if self._held_out is None:
            return {}
        batch, reading = self._read({name: value[:8] for name, value in self._held_out.items()})
        crops = batch["picture"].permute(0, 2, 3, 1).cpu().numpy()
        rows = [
            np.concatenate([dotted(crop, points) for crop, points in zip(crops, all_points, strict=True)], axis=1)
            for all_points in (batch["joints"][..., :2].cpu().numpy(), reading.landmarks.cpu().numpy())
        ]
        return {"read": np.concatenate(rows)}


def dotted(crop: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A crop (S, S, 3) with points (N, 2) in crop coordinates drawn on it: left ones orange, right ones blue."""
    drawn, side = crop.copy(), len(crop)
    for number, (x, y) in enumerate(((points + 1) * side / 2).tolist()):
        colour = (90, 160, 255) if number % 2 == 0 and number > 10 else (255, 150, 40)
        cv2.circle(drawn, (round(x), round(y)), max(1, side // 64), colour, -1)
    return drawn


def run(source: str | Path, overrides: list[str], folder: Path) -> None:
    """Train as a configuration says, in the run's folder."""
    config = load(ReaderConfig, source, overrides)
    train(seeded(ReaderTask, config), config.loop, folder)
