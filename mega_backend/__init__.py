"""MEGA Mesh Recovery's backend: photographs to body meshes. Importing it loads no torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recovery import Recoverer

__version__ = "0.1.0"


class Cancelled(Exception):
    """Raised by a `progress` callback to stop the work; passes through to the caller."""


def load(model: str | os.PathLike = "default", device: str = "cpu", precision: str = "float32") -> Recoverer:
    """Load a model; torch is imported here, not before.

    Args:
        model: "default", the bundled one, or a model folder that `mega import` or the training wrote.
        device: "cpu", "cuda", "cuda:1", "mps".
        precision: "bfloat16" samples about twice as fast where the processor knows it, and rounds the logits.

    Returns:
        A `Recoverer` with `recover`, `resample` and `random`.

    Raises:
        mega_backend.checkpoint.CheckpointError: no such folder, or one that is damaged or incomplete.
    """
    from .recovery import Recoverer

    return Recoverer.load(model, device, precision)
