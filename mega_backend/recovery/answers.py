"""What the model answers for each person: hypotheses as tokens, and how each is turned and seen in the crop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mega_backend.model.sampling import row_generator
from mega_backend.rotations import matrix_from_6d, matrix_from_axis_angle

from .conditioning import reads_landmarks
from .settings import Sampling, person_seed


def hypotheses(
    model: Any,
    features: Any,
    persons: int,
    count: int,
    sampling: Sampling,
    progress: Callable[[float], None],
    start: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (P, N, T) and log-probability (P, N): the deterministic answer, then samples, the likeliest first.

    Args:
        features: of P people, from `conditioning.features`; None for the model's idea of bodies alone.
        persons, count: P and N.
        progress: called with the fraction of the sampling done.
        start: tokens (P, T), and which of them (P, T) bool are kept, on the model's device.
    """
    given = {} if start is None else {"tokens": start[0], "visible": start[1]}
    best = model.best(features, **given)
    tokens, log_probability = best.tokens[:, None], best.log_probability[:, None]
    if len(tokens) != persons:
        tokens, log_probability = tokens.expand(persons, -1, -1), log_probability.expand(persons, -1)
    if count > 1:
        drawn = model.draw(
            features,
            count=count - 1,
            steps=sampling.steps,
            temperature=sampling.temperature,
            generator=[person_seed(sampling.seed, number) for number in range(persons)],
            progress=progress,
            **given,
        )
        order = drawn.log_probability.argsort(dim=1, descending=True, stable=True)
        sampled = drawn.tokens.gather(1, order[..., None].expand_as(drawn.tokens))
        tokens = torch.cat([tokens, sampled], dim=1)
        log_probability = torch.cat([log_probability, drawn.log_probability.gather(1, order)], dim=1)
    return tokens.cpu().numpy(), log_probability.float().cpu().numpy()


def poses(
    model: Any, features: Any, tokens: np.ndarray, seeds: Sequence[int], device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Root rotations (P, N, 3, 3) in the crop's view and weak-perspective cameras (P, N, 3) of tokens (P, N, T).

    A model that knows how sure it is of the rotation draws one for every hypothesis but the first; seeds: of each
    person.
    """
    persons, count = tokens.shape[:2]
    if not reads_landmarks(model):
        rotation_6d, weak = model.pose(features)
        rotation = matrix_from_6d(rotation_6d.float())[:, None].expand(-1, count, -1, -1)
        return rotation.double().cpu().numpy(), weak[:, None].expand(-1, count, -1).double().cpu().numpy()
    given = torch.as_tensor(tokens.astype(np.int64), device=device)
    rotation_6d, weak, spread = model.pose_under(features, given)
    noise = torch.zeros(persons, count, 3)
    for person in range(persons):
        for number in range(1, count):
            # Numbers below zero: samples of tokens own the others.
            noise[person, number] = torch.randn(3, generator=row_generator(seeds[person], -number))
    turned = matrix_from_axis_angle((noise * spread.float().cpu()).double())
    rotation = turned @ matrix_from_6d(rotation_6d.double().cpu())
    return rotation.numpy(), weak.double().cpu().numpy()
