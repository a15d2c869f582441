"""What a caller asks for, checked: counts, steps, seeds, focal length, device; and how progress is told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from mega_backend import camera

Progress = Callable[[float, str], None]
"""Called with the fraction done and what is going on; may raise `Cancelled` to stop the work."""


class Sampling(NamedTuple):
    """How samples are drawn; see `Recoverer.recover`."""

    seed: int
    steps: int
    temperature: float

    @classmethod
    def checked(cls, count: int, seed: int, steps: int, temperature: float) -> Sampling:
        """The settings for `count` hypotheses or people. Raises ValueError where they make no sense."""
        if count < 1:
            raise ValueError(f"ask for at least 1, not {count}")
        if steps < 1:
            raise ValueError(f"sampling takes at least 1 step, not {steps}")
        if not np.isfinite(temperature) or temperature < 0:
            raise ValueError(f"the temperature must be 0 or more, not {temperature}")
        return cls(seed, steps, temperature)

    def meta(self, hypotheses: int) -> dict[str, Any]:
        """What a result keeps of them (JSON-able)."""
        return {**self._asdict(), "hypotheses": hypotheses}


def person_seed(seed: int, person: int) -> int:
    """The seed of one person's samples, unrelated between persons."""
    digest = hashlib.blake2b(f"{int(seed)}/person {person}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def usable_focal_length(given: float | None, size: tuple[int, int]) -> float:
    """In pixels: the given one, or what is assumed of a picture of this width and height. ValueError for nonsense."""
    if given is None:
        return camera.default_focal_length(size)
    if not np.isfinite(given) or given <= 0:
        raise ValueError(f"the focal length must be a positive number of pixels, not {given}")
    return float(given)


def usable_device(name: str | torch.device) -> torch.device:
    """The device of this name; ValueError where this machine has none."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"there is no device '{name}' here: use cpu, or see `mega info` for what there is") from None
    return device


def people_text(count: int) -> str:
    """How many people are found, in words."""
    return "no person found" if count == 0 else f"{count} {'person' if count == 1 else 'people'} found"


def sampling_part(progress: Progress) -> Callable[[float], None]:
    """Progress of the sampling alone, from 0 to 1, as the part of the whole that it takes."""
    return lambda fraction: progress(0.4 + 0.4 * fraction, "sampling")


def no_progress(fraction: float, text: str) -> None:
    """For callers that do not want to know."""
