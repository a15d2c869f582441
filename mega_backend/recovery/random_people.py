"""People out of nothing: drawn until they are plausible, standing in a row before the camera."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mega_backend import camera
from mega_backend.model.sampling import Samples
from mega_backend.people import Detection
from mega_backend.result import LANDMARKS, Person, Recovery

from .building import build
from .placing import projected_box
from .settings import Progress, Sampling, person_seed

if TYPE_CHECKING:
    from .recoverer import Recoverer

REDRAWN = 8
"""So many times a random person who is not plausible is drawn again."""
SPACING, HEIGHT = 1.4, 2.4
"""Metres from one person to the next, and that the picture shows from bottom to top where they stand."""
PICTURE_HEIGHT = 1024
"""Pixels; the picture is at least as wide."""
FLOOR = np.float32(1.0)
"""Metres below the camera that everybody stands."""


def draw(recoverer: Recoverer, count: int, sampling: Sampling, progress: Progress, refine: bool) -> Recovery:
    """See `Recoverer.random`."""
    progress(0.0, "sampling")
    with torch.no_grad():
        drawn = recoverer.model.draw(
            None,
            count=count,
            steps=sampling.steps,
            temperature=sampling.temperature,
            generator=sampling.seed,
            progress=lambda fraction: progress(0.6 * fraction, "sampling"),
        )
        tokens, log_probability = _plausible(recoverer, drawn, sampling, progress)
    size = (max(PICTURE_HEIGHT, int(PICTURE_HEIGHT * SPACING * count / HEIGHT)), PICTURE_HEIGHT)
    focal_length = camera.default_focal_length(size)
    depth = focal_length * HEIGHT / size[1]
    results = []
    for index in range(count):
        progress(0.8 + 0.2 * index / count, f"building person {index + 1} of {count}")
        place = np.array([SPACING * (index - (count - 1) / 2), 0.0, depth])
        own = slice(index, index + 1)
        person = _standing(recoverer, tokens[own], log_probability[own], place, refine)
        person.box = projected_box(person.vertices[0], focal_length, size)
        results.append(person)
    progress(1.0, "done")
    return Recovery(size, focal_length, results, recoverer.faces, recoverer.meta(**sampling.meta(1)))


def _plausible(
    recoverer: Recoverer, drawn: Samples, sampling: Sampling, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (N, T) and log-probability (N) of drawn people (1, N), the implausible among them drawn anew.

    Whoever is no better after `REDRAWN` more draws stays as the least bad of them.
    """
    tokens, log_probability = drawn.tokens[0].clone(), drawn.log_probability[0].clone()
    if recoverer.judge is None:
        return tokens.cpu().numpy(), log_probability.cpu().numpy()

    def badness_of(tokens: torch.Tensor) -> torch.Tensor:
        return recoverer.judge(torch.as_tensor(recoverer.decode(tokens.cpu().numpy()))).badness

    badness = badness_of(tokens)
    for attempt in range(REDRAWN):
        poor = (badness >= 1).nonzero()[:, 0]
        if not len(poor):
            break
        progress(0.6 + 0.2 * attempt / REDRAWN, f"{len(poor)} drawn again")
        chosen = poor.to(tokens.device)
        again = recoverer.model.draw(
            None,
            count=1,
            steps=sampling.steps,
            temperature=sampling.temperature,
            generator=[person_seed(person_seed(sampling.seed, int(number)), attempt) for number in poor],
            tokens=torch.zeros_like(tokens[chosen]),
            visible=torch.zeros_like(tokens[chosen], dtype=torch.bool),
        )
        verdict = badness_of(again.tokens[:, 0])
        better = verdict < badness[poor]
        taken = chosen[better.to(tokens.device)]
        tokens[taken] = again.tokens[better.to(tokens.device), 0]
        log_probability[taken] = again.log_probability[better.to(tokens.device), 0]
        badness[poor] = torch.minimum(verdict, badness[poor])
    return tokens.cpu().numpy(), log_probability.cpu().numpy()


def _standing(
    recoverer: Recoverer, tokens: np.ndarray, log_probability: np.ndarray, place: np.ndarray, refine: bool
) -> Person:
    """The person of tokens (1, T), facing the camera at a place (3,), feet on the floor."""
    facing = np.diag([1.0, -1.0, -1.0])
    person = build(recoverer, _unseen(), tokens, log_probability, facing, place, refine=refine)
    lift = FLOOR - person.vertices[0, :, 1].max()
    for array in (person.vertices, person.joints, person.translation):
        array[..., 1] += lift
    return person


def _unseen() -> Detection:
    """Somebody whom no picture shows."""
    nowhere = np.full((LANDMARKS, 3), np.nan, np.float32)
    return Detection(np.zeros(4, np.float32), np.zeros((LANDMARKS, 3), np.float32), nowhere, 0.0)
