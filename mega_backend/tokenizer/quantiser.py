"""Vector quantisation with a codebook that follows its latents (van den Oord et al. 2017, appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Quantiser(nn.Module):
    """Nearest code by L2 distance; codes are moving averages of what they stand for.

    The buffers carry the published layout: ``codebook (K, D)``, ``ema_sum (K, D)``, ``ema_count (K)``. With ``places``
    T > 0 every one of T places has a codebook of its own, ``(T, K, D)``: what is usual for a hand is not for a head.
    Such codebooks stay where `fit` puts them.

    A code whose smoothed count falls under ``revive_below`` times the mean count is dead: it moves to a latent drawn
    from the batch (by the global generator, which the training loop seeds per step), where codes are crowded most. Rare
    codes are not dead ones: they stand for the poses far out, so the bound must be low. 0 turns this off, and a
    ``decay`` of 1 leaves the codebook where `fit` placed it.
    """

    def __init__(
        self,
        codes: int,
        dimensions: int,
        decay: float = 0.99,
        commitment: float = 0.25,
        epsilon: float = 1e-5,
        revive_below: float = 0.03,
        places: int = 0,
    ):
        super().__init__()
        if places and decay < 1:
            raise ValueError("Codebooks per place do not move while training: set decay to 1.")
        self.places = places
        self.decay, self.commitment, self.epsilon, self.revive_below = decay, commitment, epsilon, revive_below
        shape = (places, codes, dimensions) if places else (codes, dimensions)
        codebook = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("codebook", codebook)
        self.register_buffer("ema_sum", codebook.clone())
        self.register_buffer("ema_count", torch.ones(shape[:-1]))

    def nearest(self, latent: Tensor) -> Tensor:
        """Tokens ``(…)`` of latents ``(…, D)``; with places ``(…, T)`` of ``(…, T, D)``."""
        if not self.places:
            return (0.5 * self.codebook.square().sum(-1) - latent @ self.codebook.T).argmin(-1)
        # One product per place; ½ ‖code‖² − latent · code is all that the nearest depends on.
        rows = latent.flatten(0, -3).transpose(0, 1)
        half = 0.5 * self.codebook.square().sum(-1)[:, None]
        return torch.baddbmm(half, rows, self.codebook.mT, alpha=-1).argmin(-1).T.reshape(latent.shape[:-1])

    def lookup(self, tokens: Tensor) -> Tensor:
        """Code vectors ``(…, D)`` of tokens ``(…)``; with places ``(…, T)``."""
        if self.places:
            return self.codebook[torch.arange(self.places, device=tokens.device), tokens]
        return F.embedding(tokens, self.codebook)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents ``(…, D)`` → tokens ``(…)``, their codes ``(…, D)`` (no gradient), and the commitment loss."""
        with torch.no_grad():
            tokens = self.nearest(latent)
            codes = self.lookup(tokens)
            if self.training and self.decay < 1:
                self.update(latent.detach().flatten(0, -2), tokens.flatten())
        return tokens, codes, self.commitment * F.mse_loss(latent, codes)

    @torch.no_grad()
    def update(self, latent: Tensor, tokens: Tensor) -> None:
        """Move the codes towards the latents ``(N, D)`` that chose them, ``tokens (N)``, and revive dead ones."""
        codes = self.codebook.shape[0]
        latent = latent.to(self.codebook)
        count = torch.zeros_like(self.ema_count).index_add_(0, tokens, torch.ones_like(latent[:, 0]))
        total = torch.zeros_like(self.ema_sum).index_add_(0, tokens, latent)
        self.ema_count.lerp_(count, 1 - self.decay)
        self.ema_sum.lerp_(total, 1 - self.decay)
        mass = self.ema_count.sum()
        smoothed = (self.ema_count + self.epsilon) / (mass + codes * self.epsilon) * mass
        self.codebook.copy_(self.ema_sum / smoothed[:, None])
        dead = (self.ema_count < self.revive_below * mass / codes).nonzero().flatten()[: len(latent)]
        if len(dead):
            drawn = latent[torch.randperm(len(latent))[: len(dead)].to(latent.device)]
            self.codebook[dead] = drawn
            self.ema_count[dead] = mass / codes
            self.ema_sum[dead] = drawn * mass / codes

    @torch.no_grad()
    def fit(self, latent: Tensor, iterations: int = 20, seed: int = 0) -> None:
        """K-means the codes over latents ``(N, D)``, with places ``(N, T, D)``; N ≥ K."""
        codes = self.codebook.shape[-2]
        if len(latent) < codes:
            raise ValueError(f"{len(latent)} latents cannot place {codes} codes: give more bodies.")
        generator = torch.Generator().manual_seed(seed)
        placed = [
            k_means(part, codes, iterations, generator) for part in (latent.unbind(1) if self.places else (latent,))
        ]
        for buffer, parts in zip((self.codebook, self.ema_count), zip(*placed, strict=True), strict=True):
            buffer.copy_(torch.stack(parts) if self.places else parts[0])
        self.ema_sum.copy_(self.codebook * self.ema_count[..., None])


def k_means(latent: Tensor, codes: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centres ``(K, D)`` over latents ``(N, D)`` and how many chose each ``(K)``.

    An empty cluster restarts at the latent that is coded worst.
    """
    chosen = torch.randperm(len(latent), generator=generator)[:codes].to(latent.device)
    centres, count = latent[chosen].clone(), latent.new_ones(codes)
    for _ in range(iterations):
        tokens = (0.5 * centres.square().sum(-1) - latent @ centres.T).argmin(-1)
        count = torch.bincount(tokens, minlength=codes).to(latent)
        total = torch.zeros_like(centres).index_add_(0, tokens, latent)
        empty = (count == 0).nonzero().flatten()
        if len(empty):
            worst = (latent - centres[tokens]).square().sum(1).topk(len(empty)).indices
            total[empty], count[empty] = latent[worst], 1.0
        centres = total / count[:, None]
    return centres, count


class ResidualQuantiser(nn.Module):
    """Quantisers in turn, each coding what the ones before left over; optionally all with one shared codebook.

    With one stage tokens are ``(…)``; with S > 1 stages ``(…, S)``. Without any stage nothing is quantised: the model
    around it is a plain autoencoder, and asking for tokens is an error. ``rotate`` chooses the gradient: `rotated`
    instead of the published `straight_through`.
    """

    def __init__(self, stages: int, shared: bool = False, rotate: bool = False, **options):
        super().__init__()
        self.gradient = rotated if rotate else straight_through
        if stages < 0:
            raise ValueError(f"{stages} quantisers: the number must be 0 (plain autoencoder) or more.")
        self.stages = stages
        self.quantisers = nn.ModuleList(Quantiser(**options) for _ in range(min(stages, 1) if shared else stages))

    def __iter__(self):
        return (self.quantisers[min(stage, len(self.quantisers) - 1)] for stage in range(self.stages))

    def lookup(self, tokens: Tensor) -> Tensor:
        """Code vectors ``(…, D)``, summed over the stages."""
        if self.stages == 0:
            raise ValueError("This autoencoder has no quantiser, hence no tokens: use its latents.")
        if self.stages == 1:
            return self.quantisers[0].lookup(tokens)
        return sum(quantiser.lookup(tokens[..., stage]) for stage, quantiser in enumerate(self))

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents ``(…, D)`` → tokens, quantised latents ``(…, D)`` with a gradient, and the loss."""
        if self.stages == 0:
            return latent.new_zeros((*latent.shape[:-1], 0), dtype=torch.long), latent, latent.new_zeros(())
        tokens, total, loss, rest = [], 0.0, 0.0, latent
        for quantiser in self:
            stage_tokens, codes, stage_loss = quantiser(rest)
            rest = rest - codes
            tokens, total, loss = [*tokens, stage_tokens], total + codes, loss + stage_loss
        return tokens[0] if self.stages == 1 else torch.stack(tokens, -1), self.gradient(latent, total), loss


def straight_through(latent: Tensor, quantised: Tensor) -> Tensor:
    """The quantised latents ``(…, D)``; their gradient passes to the latents as it is."""
    return latent + (quantised - latent).detach()


def rotated(latent: Tensor, quantised: Tensor) -> Tensor:
    """The quantised latents ``(…, D)``; their gradient turns and scales with the step from latent to code.

    The code is written as λ·R·latent with the rotation R and scale λ held constant (Fifty et al. 2024, "Restructuring
    vector quantization with the rotation trick").
    """
    before, after = F.normalize(latent.detach(), dim=-1, eps=1e-6), F.normalize(quantised, dim=-1, eps=1e-6)
    scale = quantised.norm(dim=-1, keepdim=True) / latent.detach().norm(dim=-1, keepdim=True).clamp(min=1e-6)
    middle = F.normalize(before + after, dim=-1, eps=1e-6)
    reflected = latent - 2 * (latent * middle).sum(-1, keepdim=True) * middle
    return scale * (reflected + 2 * (latent * before).sum(-1, keepdim=True) * after)
