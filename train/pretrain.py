"""Pretrain MEGA on motion capture alone: predict masked mesh tokens from the visible ones, no pictures.

    python -m train.pretrain pretrain --run runs/pretrain bank=bank.pt validation=val.pt

Bodies and their tokens come from banks (`train.data.bank --tokenizer`). The result generates random people, and its
encoder and decoder are where training with pictures starts. Source: MEGA, §3.1–3.2 of the paper.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mega_backend import checkpoint
from mega_backend.model.mega import Mega
from train import command, figures
from train.config import Config, UserError, load, parser
from train.loop import Batch, LoopConfig, Task, seeded, train


class PretrainConfig(Config):
    """Pretraining on the tokens of a bank."""

    loop: LoopConfig
    bank: Path = Field(description="bodies with tokens to train on")
    validation: Path = Field(description="bodies with tokens to validate on")
    batch: int = Field(64, gt=0, description="bodies of one shard of a step")
    code_count: int = Field(512, gt=1)
    tokenizer: Path | None = Field(None, description="model folder whose tokens these are, to draw samples in the log")
    model: dict[str, Any] = Field(default_factory=dict, description="settings of Mega: width, depths, heads")


def draw_visible(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Which tokens stay visible, (B, T) bool: ⌊T(1 − cos(π/2 · u))⌋ of each row, its own u ~ U(0, 1), at random places.

    The published program draws one u for a whole batch; one for each row trains on all ratios in every step.
    """
    batch, places = tokens.shape
    device = generator.device
    ratio = torch.cos(math.pi / 2 * torch.rand(batch, generator=generator, device=device))
    rank = torch.rand(batch, places, generator=generator, device=device).argsort(1).argsort(1)
    return (rank < (places * (1 - ratio)).floor()[:, None]).to(tokens.device)


def masked_cross_entropy(logits: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
    """Mean cross-entropy of the masked places; logits (B, T, K), tokens and visible (B, T)."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    masked = (~visible).flatten().float()
    return (loss * masked).sum() / masked.sum().clamp_min(1)


def step_mask_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded from the CPU's global one, which the training loop seeds anew in every step."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))


class PretrainTask(Task):
    """Masked tokens without conditioning."""

    data_on_device = True

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens, self.validation = (_tokens(path) for path in (config.bank, config.validation))
        settings = {"token_count": self.tokens.shape[1], "code_count": config.code_count, **config.model}
        self.model = Mega.from_config(settings)
        # Outside the module: drawn with, not trained.
        self._loaded = config.tokenizer and checkpoint.load(config.tokenizer)
        if self._loaded and self._loaded.tokenizer is None:
            raise UserError(f"{config.tokenizer} holds no tokenizer: give the folder that encoded the bank")

    def shard(self, step: int, shard: int, generator: torch.Generator) -> Batch:
        self.tokens = self.tokens.to(generator.device)
        index = torch.randint(len(self.tokens), (self.config.batch,), generator=generator, device=generator.device)
        return {"tokens": self.tokens[index].long()}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch["tokens"]
        visible = draw_visible(tokens, step_mask_generator(tokens.device))
        loss = masked_cross_entropy(self.model.logits(tokens, visible), tokens, visible)
        return loss, {"tokens": loss.detach()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy of masked held-out tokens, at the masks of training."""
        device = next(self.model.parameters()).device
        tokens = self.validation[:512].long().to(device)
        visible = draw_visible(tokens, torch.Generator().manual_seed(0))
        return {"tokens": float(masked_cross_entropy(self.model.logits(tokens, visible), tokens, visible))}

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out bodies (left), and random ones (right), where the tokenizer is known."""
        if not self._loaded:
            return {}
        device = next(self.model.parameters()).device
        tokenizer = self._loaded.tokenizer.to(device)
        drawn = self.model.sample(None, 3, generator=torch.Generator().manual_seed(0))[0]
        shown = [self.validation[:3].long().to(device), drawn]
        columns = [tokenizer.decode(tokens).cpu().numpy() for tokens in shown]
        return {"held_out_random": figures.compare(columns, self._loaded.body.faces.cpu().numpy())}


def _tokens(path: Path) -> Tensor:
    """Tokens (N, T) of a bank, or of a file that holds nothing else (`train.smpl_tokenizer` writes such)."""
    if not path.is_file():
        raise UserError(f"there is no bank of bodies at {path}: make one with `python -m train.data.bank`")
    tokens = torch.load(path, map_location="cpu", weights_only=True).get("tokens")
    if tokens is None:
        raise UserError(f"{path} holds no tokens: encode it with `python -m train.data.bank --tokenizer`")
    return tokens


def main() -> None:
    args = parser(__doc__.splitlines()[0], "pretrain").parse_intermixed_args()
    config = load(PretrainConfig, args.config, args.overrides)
    train(seeded(PretrainTask, config), config.loop, args.run)


if __name__ == "__main__":
    command.run(main)
