"""Body shapes of people from birth to old age, as coefficients of a `Body`."""

from __future__ import annotations

import torch
from torch import Tensor

from mega_backend.body import Body

HELD_OUT = 0.1
"""The share of the stored people that training never sees."""


def bank(body: Body, split: str = "train") -> Tensor:
    """Stored people (N, S) of a split: "train", or "val" and "test", which share the held-out tenth."""
    held = round(len(body.shape_bank) * HELD_OUT)
    return body.shape_bank[:-held] if split == "train" else body.shape_bank[-held:]


def sample(body: Body, count: int, generator: torch.Generator, split: str = "train", spread: float = 0.1) -> Tensor:
    """Shape coefficients (count, S): people of the split's bank, each moved by `spread` standard deviations at random.

    Drawn with the generator on its own device, then moved to the body's.
    """
    people = bank(body, split)
    index = torch.randint(len(people), (count,), generator=generator, device=generator.device)
    noise = torch.randn(count, body.shape_count, generator=generator, device=generator.device)
    return people[index.to(people.device)] + spread * noise.to(people.device)
