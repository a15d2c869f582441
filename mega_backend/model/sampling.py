"""Sampling mesh tokens from a masked generative model, step by step: pure functions with explicit randomness.

Every row (one sample of one person) owns a CPU generator derived from its seed and its number, so that a sample is the
same whatever else is in the batch and whichever device computes the logits. Source: MEGA, method of the paper's §3.4.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

# Where codes have places, some samples go farther than others: the standard deviation of a logarithm, because errors
# have longer tails than a normal distribution.
TAILS = 0.2
# How much of the noise that every number has for itself enters a sample, relative to what was measured of errors; what
# all share makes up for the rest. Noise of its own in every number spoils a body without saying anything else about it:
# on validation bodies the best of 25 came to 27.3 mm instead of 28.5, under larger errors to 36.7 instead of 37.6, with
# as much spread between samples.
OWN = 0.5
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Samples(NamedTuple):
    """Sampled tokens (…, T) long and their log-probability (…) under the model, given tokens excluded."""

    tokens: torch.Tensor
    log_probability: torch.Tensor


def row_generator(seed: int, row: int) -> torch.Generator:
    """The generator of sample number `row` under `seed`; unrelated for any two different pairs."""
    digest = hashlib.blake2b(f"{int(seed)}/{int(row)}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def gumbel(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str) -> torch.Tensor:
    """Standard Gumbel noise (rows, *shape), row r drawn on the CPU from generators[r]."""
    rows = torch.stack([torch.rand(*shape, generator=generator) for generator in generators])
    rows = rows.clamp_min(1e-20)  # rand() may return 0 exactly
    return -torch.log(-torch.log(rows)).to(device)


def noise_scale(step: int, steps: int, temperature: float, annealed: bool) -> float:
    """Scale of the Gumbel noise in step 1…steps; `annealed` is the steeper schedule of unconditional generation."""
    left = 1 - step / steps
    return left * (temperature * left) ** 5 if annealed else temperature * left


def masked_after(step: int, steps: int, masked: torch.Tensor) -> torch.Tensor:
    """How many of the `masked` (rows,) places stay masked after a step; none after the last."""
    if step == steps:
        return torch.zeros_like(masked)
    return (masked * math.cos(math.pi / 2 * step / steps)).floor().long()


def lookup(codebook: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Codes (…, T, D) of tokens (…, T); codebook (T, K, D), one for each place."""
    return codebook[torch.arange(len(codebook), device=tokens.device), tokens]


def expected_code(probability: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Mean code (R, T, D) under probability (R, T, K); codebook (T, K, D)."""
    return (probability.transpose(0, 1) @ codebook).transpose(0, 1)


def nearest_code(points: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index (R, T) of the code nearest to each point (R, T, D); codebook (T, K, D)."""
    cross = points.transpose(0, 1) @ codebook.mT
    return (0.5 * codebook.square().sum(-1)[:, None] - cross).argmin(-1).transpose(0, 1)


def likeliest(log_probability: torch.Tensor, codebook: torch.Tensor | None) -> torch.Tensor:
    """The best single code (R, T) under log_probability (R, T, K): the likeliest, or the nearest to the expected code.

    Where codes have places (codebook (T, K, D)), many near codes share the probability of what they all look like, and
    the likeliest of them is a poor answer; the expected code has the least squared error.
    """
    if codebook is None:
        return log_probability.argmax(-1)
    return nearest_code(expected_code(log_probability.exp(), codebook), codebook)


class Codes(NamedTuple):
    """What is known of the codes where each place has its own.

    codebook (T, K, D): where they lie. together (T · D, R): how errors of different places go together. A sample's
    noise is together · ε plus a part of each number's own (`OWN`), so that all its numbers have unit variance: an arm
    that is farther forward than expected takes its hand along. Some samples go farther than others.
    """

    codebook: torch.Tensor
    together: torch.Tensor

    def noise(self, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Noise (rows, T, D), row r drawn on the CPU from generators[r]: what one sample thinks otherwise."""
        size, rank = self.together.shape
        drawn = torch.stack([torch.randn(rank + size + 1, generator=generator) for generator in generators])
        drawn = drawn.to(self.together)
        explained = self.together.square().sum(1)
        own = torch.where(explained > 0, OWN * (1 - explained).clamp_min(0).sqrt(), 1.0)
        scale = ((1 - own.square()) / explained.clamp_min(1e-12)).sqrt()
        joint = scale * (drawn[:, :rank] @ self.together.T) + own * drawn[:, rank:-1]
        far = torch.exp(TAILS * drawn[:, -1:] - TAILS**2)
        return (far * joint).view(len(drawn), len(self.codebook), -1)


def code_moments(probability: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean code (R, T, D) under probability (R, T, K), and the Cholesky factor (R, T, D, D) of its covariance."""
    weight = probability.transpose(0, 1)
    mean = weight @ codebook
    outer = (codebook[..., :, None] * codebook[..., None, :]).flatten(2)
    second = (weight @ outer).unflatten(-1, (codebook.shape[-1],) * 2)
    covariance = second - mean[..., :, None] * mean[..., None, :]
    # A share of the codes' own spread keeps the factor defined where one code is certain.
    floor = 1e-6 + 1e-4 * codebook.var(1).mean(-1)[:, None, None]
    eye = torch.eye(codebook.shape[-1], device=mean.device, dtype=mean.dtype)
    factor = torch.linalg.cholesky(covariance + floor[..., None] * eye)
    return mean.transpose(0, 1), factor.transpose(0, 1)


def draw_near(probability: torch.Tensor, scale: float, noise: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Codes (R, T) nearest to mean + scale · factor · noise under probability (R, T, K); noise (R, T, D).

    As probable codes as a draw from the probability itself would give, where that has one peak; but the noise may go
    together between places, which independent draws cannot.
    """
    if scale <= 0:
        return nearest_code(expected_code(probability, codebook), codebook)
    mean, factor = code_moments(probability, codebook)
    return nearest_code(mean + scale * (factor @ noise[..., None])[..., 0], codebook)


def generate(
    logits: Logits,
    first: torch.Tensor,
    tokens: torch.Tensor,
    visible: torch.Tensor,
    generators: Sequence[torch.Generator],
    steps: int,
    temperature: float,
    annealed: bool = False,
    progress: Callable[[float], None] | None = None,
    codes: Codes | None = None,
) -> Samples:
    """Fill every masked place of R rows in `steps` steps.

    As published: codes drawn under Gumbel noise that goes to zero with the steps. Where codes have places, each row has
    one noise for all its steps (`draw_near`), as large as the temperature; unconditional rows anneal it.

    logits: (tokens (R, T), visible (R, T)) → (R, T, K), asked from the second step on; first (R, T, K): the logits of
    the starting state, which rows of one person share. tokens (R, T) long count where visible (R, T) bool is true:
    these are kept. progress is called with the fraction done after each step. codes, where the model knows where they
    lie. Returns tokens (R, T) and log-probability (R).
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    tokens, visible = tokens.clone(), visible.clone()
    masked = (~visible).sum(1)
    total = torch.zeros(len(tokens), device=first.device)
    noise = None if codes is None else codes.noise(generators)
    for step in range(1, steps + 1):
        scores = (first if step == 1 else logits(tokens, visible)).float()
        log_probability = torch.log_softmax(scores, dim=-1)
        scale = noise_scale(step, steps, temperature, annealed)
        if codes is not None:
            spread = min(scale, 1.0) if annealed else temperature
            drawn = draw_near(log_probability.exp(), spread, noise, codes.codebook)
        elif scale > 0:
            drawn = (scores + scale * gumbel(scores.shape[1:], generators, scores.device)).argmax(-1)
        else:
            drawn = scores.argmax(-1)
        drawn_log_probability = log_probability.gather(-1, drawn[..., None])[..., 0]
        confidence = drawn_log_probability
        if scale > 0:
            confidence = confidence + scale * gumbel(scores.shape[1:2], generators, scores.device)
        confidence = confidence.masked_fill(visible, math.inf)
        # Rank 0 is the least confident place: those below the quota stay masked.
        rank = confidence.argsort(dim=1, stable=True).argsort(dim=1)
        chosen = ~visible & (rank >= masked_after(step, steps, masked)[:, None])
        tokens = torch.where(chosen, drawn, tokens)
        total = total + (drawn_log_probability * chosen).sum(1)
        visible = visible | chosen
        if progress is not None:
            progress(step / steps)
    return Samples(tokens, total)
