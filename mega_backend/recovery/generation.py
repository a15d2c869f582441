"""How one sample comes about, step by step."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mega_backend.model.sampling import likeliest
from mega_backend.people import Detection, square_crop

from .settings import Sampling, person_seed

if TYPE_CHECKING:
    from .recoverer import Recoverer


class Iteration(NamedTuple):
    """A moment of a generation: tokens (T), and which are drawn (T) bool; the others as the model would answer now."""

    tokens: np.ndarray
    known: np.ndarray


def watch(recoverer: Recoverer, picture: np.ndarray, detection: Detection, sampling: Sampling) -> list[Iteration]:
    """See `Recoverer.generation`."""
    model = recoverer.model
    seen: list[Iteration] = []
    # The model itself draws; a stand-in that shares its weights notes what it is asked on the way.
    watched = copy.copy(model)

    def logits(tokens: torch.Tensor, visible: torch.Tensor, condition: Any = None) -> torch.Tensor:
        answer = model.logits(tokens, visible, condition)
        guess = likeliest(answer.float().log_softmax(-1), model.codebook)
        guess = torch.where(visible, tokens, guess)
        seen.append(Iteration(guess[0].cpu().numpy(), visible[0].cpu().numpy()))
        return answer

    watched.logits = logits
    crop = square_crop(detection.landmarks, (picture.shape[1], picture.shape[0]))
    with torch.no_grad():
        features = recoverer.features(picture, [crop], [detection])
        drawn = watched.draw(
            features, 1, sampling.steps, sampling.temperature, generator=[person_seed(sampling.seed, 0)]
        )
    last = drawn.tokens[0, 0].cpu().numpy()
    # The first step starts from logits that were computed for all samples at once.
    return [*seen, Iteration(last, np.ones(len(last), bool))]
