"""Stage 2: the masked model on top of the regressor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mega_backend.body import Body
from mega_backend.model.mega import Mega
from mega_backend.model.sampling import code_moments, likeliest, lookup
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train import figures, metrics
from train.config import UserError
from train.data import views
from train.data.bank import Bank
from train.loop import Batch
from train.pretrain import masked_cross_entropy, step_mask_generator
from train.weights import averaged_state

from .config import HmrConfig
from .tokens import codes_of_places, load_tokenizer
from .view_task import VALIDATION, ViewTask, degrees, draw_known


class MaskedTask(ViewTask):
    """Stage 2: cross-entropy of the masked tokens, under landmarks and under nothing; begins as the regressor does."""

    def __init__(self, config: HmrConfig) -> None:
        super().__init__(config)
        if self.bank.tokens is None:
            raise UserError(
                f"{config.data.bank} holds no tokens: encode it with `python -m train.data.bank --tokenizer`"
            )
        # Outside the module's own parameters: it is not trained, and the model folder already holds it.
        self._tokenizer = [load_tokenizer(config)]
        latents = self.bank.latents
        self.model = Mega.from_config(
            {
                "token_count": latents.shape[1],
                "code_count": self._tokenizer[0].code_count,
                "conditioning": {"kind": "landmarks"},
                **config.model,
                "prior": {"latent_size": latents.shape[2], **config.model["prior"]},
            }
        )
        self.model.latent_head.place_codes(codes_of_places(self._tokenizer[0]))
        self._parts = self._tokenizer[0].token_part.cpu()
        if config.start:
            self.model.prior.load_state_dict(averaged_state(config.start, "regressor."))
            self.model.latent_head.load_state_dict(averaged_state(config.start, "head."), strict=False)
        if config.start_masked:
            state = averaged_state(config.start_masked, "model.")
            begun = ("prior.", "latent_head.codebook", "latent_head.precision", "latent_head.usual")
            own = {name: value for name, value in state.items() if not name.startswith(begun)}
            self.model.load_state_dict(own, strict=False)
        self.model.prior.requires_grad_(not config.frozen_prior)

    @property
    def tokenizer(self) -> MeshVQVAE:
        """The tokenizer, where the model is."""
        return self._tokenizer[0].to(self.model.encoder.cls_token.device)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch["tokens"]
        visible = draw_known(len(tokens), self._parts, step_mask_generator(tokens.device), self.config)
        condition = self.model.condition(batch["features"])
        free = round(self.config.unconditional * len(tokens))
        shown = slice(free, None)
        logits = self.model.logits(tokens[shown], visible[shown], condition.select(shown))
        losses = {"tokens": masked_cross_entropy(logits, tokens[shown], visible[shown])}
        if not self.config.frozen_prior:
            error = (condition.latent.float() - batch["latents"]) / self.model.prior.latent_scale
            losses["latent"] = error.square().mean()
            losses |= self.pose_losses(condition.rotation_6d, condition.camera, batch)
        if free:
            alone = self.model.logits(tokens[:free], visible[:free], None)
            losses["unconditional"] = masked_cross_entropy(alone, tokens[:free], visible[:free])
        return sum(weight * losses[name] for name, weight in self._weights() if name in losses), losses

    def _weights(self) -> list[tuple[str, float]]:
        pose = [(name, getattr(self.config, f"{name}_weight")) for name in ("latent", "rotation", "camera")]
        return [("tokens", 1.0), ("unconditional", self.config.unconditional_weight), *pose]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        results = {}
        body = self._body()
        for name, options in VALIDATION.items():
            batch = self.held_out(200, options)
            condition = self.model.condition(batch["features"])
            hidden = torch.zeros_like(batch["tokens"], dtype=torch.bool)
            logits = self.model.logits(batch["tokens"], hidden, condition).float()
            vertices = self.tokenizer.decode(likeliest(logits.log_softmax(-1), self.model.codebook))
            joints = body.joints(vertices.cpu(), "body22")[:, metrics.BODY22_TO_LSP14]
            truth = batch["joints"].cpu()[:, metrics.BODY22_TO_LSP14]
            results |= {
                f"{name}_tokens": float(F.cross_entropy(logits.flatten(0, 1), batch["tokens"].flatten())),
                f"{name}_pa_mpjpe": float(metrics.aligned_distances(joints, truth).mean()),
                f"{name}_degrees": float(degrees(condition.rotation_6d, batch["rotation"]).median()),
            }
        return results

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out bodies: the truth as the tokenizer has it, the likeliest answer, a sample."""
        batch = self.held_out(3, VALIDATION["whole"])
        condition = self.model.condition(batch["features"])
        shown = [batch["tokens"], self.model.best(condition).tokens, self.model.sample(condition, 1)[:, 0]]
        columns = [self.tokenizer.decode(tokens).cpu().numpy() for tokens in shown]
        return {"truth_likeliest_sample": figures.compare(columns, self._body().faces.numpy())}

    def _body(self) -> nn.Module:
        return Body.bundled()


@torch.no_grad()
def fit_together(model: Mega, bank: Bank, count: int = 4000, batch: int = 100) -> None:
    """Measure how errors of different places go together, under landmarks and under nothing, into the latent head.

    Errors are those of the true codes in units of the model's own doubt; the largest principal components of all places
    together are kept.
    """
    head, generator = model.latent_head, torch.Generator().manual_seed(9)
    rank = head.together.shape[-1]
    for case in range(2):
        covariance = 0.0
        for start in range(0, min(count, len(bank)), batch):
            part = bank.part(start, start + batch)
            nothing = torch.zeros_like(part.tokens, dtype=torch.bool)
            condition = None
            if case == 0:
                view = views.draw(part.landmarks, part.root, generator, views.ViewOptions())
                condition = model.condition(view.features)
            logits = model.logits(part.tokens.long(), nothing, condition)
            mean, factor = code_moments(logits.softmax(-1), head.codebook)
            error = lookup(head.codebook, part.tokens.long()) - mean
            unit = torch.linalg.solve_triangular(factor, error[..., None], upper=False).flatten(1)
            covariance = covariance + unit.T @ unit
        spread = covariance.diagonal().sqrt()
        values, vectors = torch.linalg.eigh(covariance / spread[:, None] / spread)
        together = vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()
        # Never more than all of a number's variance.
        most = together.square().sum(1, keepdim=True).sqrt()
        head.together[case] = together / (most / 0.99).clamp_min(1.0)
