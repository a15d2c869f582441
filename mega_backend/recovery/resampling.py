"""Body parts of one hypothesis kept, the others drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mega_backend import pictures
from mega_backend.locking import part_numbers
from mega_backend.people import square_crop
from mega_backend.refinement import Framing
from mega_backend.result import Person, Recovery

from .answers import hypotheses
from .building import build
from .settings import Progress, Sampling, sampling_part

if TYPE_CHECKING:
    from .recoverer import Recoverer


def resample(
    recoverer: Recoverer,
    recovery: Recovery,
    keep: Sequence[str],
    hypothesis: int,
    count: int,
    sampling: Sampling,
    progress: Progress,
    picture: pictures.Source | None,
    refine: bool,
) -> Recovery:
    """See `Recoverer.resample`; count: hypotheses of the result."""
    kept_parts = part_numbers(keep, recoverer.body.part_names)
    meta = recoverer.meta(**sampling.meta(count)) | {"keep": list(keep)}
    size, focal_length = recovery.picture_size, recovery.focal_length
    progress(0.0, "sampling")
    everyone = recovery.people
    if not everyone:
        return Recovery(size, focal_length, [], recoverer.faces, meta)
    start = _kept_tokens(recoverer, everyone, hypothesis, kept_parts, keep)
    crops = [square_crop(person.landmarks, size) for person in everyone]
    seen = all((person.landmarks[:, 2] > 0).any() for person in everyone)
    with torch.no_grad():
        features = None
        if seen and recoverer.reads_landmarks:
            features = recoverer.features(None, crops, everyone)
        elif picture is not None:
            features = recoverer.features(pictures.read(picture), crops, everyone)
        elif seen:
            raise ValueError("this model looks at the picture itself: give the picture to resample its people")
        tokens, log_probability = hypotheses(
            recoverer.model, features, len(everyone), count, sampling, sampling_part(progress), start
        )
    moves = torch.isin(recoverer.body.vertex_part.cpu(), torch.tensor(kept_parts)).numpy()
    results = []
    for index, (person, crop) in enumerate(zip(everyone, crops, strict=True)):
        progress(0.8 + 0.2 * index / len(everyone), f"building person {index + 1} of {len(everyone)}")
        results.append(
            build(
                recoverer,
                person,
                tokens[index],
                log_probability[index],
                person.rotation[hypothesis].astype(np.float64),
                person.translation[hypothesis].astype(np.float64),
                framing=Framing(crop, focal_length, size) if seen else None,
                anchor=(person.vertices[hypothesis], moves) if moves.any() else None,
                refine=refine,
            )
        )
    progress(1.0, "done")
    return Recovery(size, focal_length, results, recoverer.faces, meta)


def _kept_tokens(
    recoverer: Recoverer, everyone: Sequence[Person], hypothesis: int, kept_parts: Sequence[int], keep: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (P, T) of the hypothesis whose parts are kept, and which of them (P, T) bool belong to these parts.

    Raises ValueError where there is no such hypothesis, or another model made the people, or no token is kept.
    """
    for person in everyone:
        _check_made_by(recoverer, person, hypothesis)
    base = torch.as_tensor(np.stack([person.tokens[hypothesis] for person in everyone]).astype(np.int64))
    visible = torch.isin(recoverer.tokenizer.token_part.cpu(), torch.tensor(kept_parts, dtype=torch.int32))
    if kept_parts and not visible.any():
        raise ValueError(f"no token of this model belongs to {', '.join(keep)} alone: keep a larger part")
    return base.to(recoverer.device), visible.expand(base.shape).to(recoverer.device)


def _check_made_by(recoverer: Recoverer, person: Person, hypothesis: int) -> None:
    if not 0 <= hypothesis < person.hypotheses:
        raise ValueError(f"there is no hypothesis {hypothesis}: choose 0 to {person.hypotheses - 1}")
    tokenizer = recoverer.tokenizer
    fits = person.tokens.shape[1] == tokenizer.token_count and person.vertices.shape[1] == recoverer.body.vertex_count
    if not fits or int(person.tokens.max(initial=0)) >= tokenizer.code_count:
        raise ValueError("this result was made with another model: resample it with the model that made it")
