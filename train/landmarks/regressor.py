"""Stage 1, minutes: what landmarks and known tokens say, in one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mega_backend.body import Body
from mega_backend.model.prior import LandmarkRegressor, LatentHead, Regression
from mega_backend.rotations import axis_angle_from_matrix, matrix_from_6d
from train import figures, metrics
from train.data.bank import Bank
from train.loop import Batch
from train.pretrain import draw_visible, masked_cross_entropy, step_mask_generator
from train.weights import averaged_state

from .config import HmrConfig
from .tokens import codes_of_places, load_tokenizer
from .view_task import VALIDATION, ViewTask, degrees, draw_known, weighted


class RegressorTask(ViewTask):
    """Stage 1: what landmarks and known tokens say about the other tokens, the rotation and the camera.

    Squared error of the latents in units of their spread; distance of the joints that they mean; cross-entropy of the
    tokens under the regressor's own sureness (`LatentHead`); rotation and camera, and how far the rotation is off. A
    bank without tokens (surface points) teaches latents, rotation and camera alone: nothing is ever known there.
    """

    def __init__(self, config: HmrConfig) -> None:
        super().__init__(config)
        latents = self.bank.latents
        self.regressor = LandmarkRegressor(latents.shape[1], latents.shape[2], **config.model)
        sample = latents[:: max(1, len(latents) // 20000)].float()
        mean = sample.mean(0)
        self.regressor.latent_mean.copy_(mean)
        # Every token counts alike here; how far its part moves is what the joints' distance tells.
        scale = (sample - mean).square().mean((0, 2)).sqrt()
        self.regressor.latent_scale.copy_(scale[:, None].expand_as(mean))
        if config.start:
            self._start_from(config.start)
        if self.bank.tokens is not None:
            # Outside the module: it is not trained.
            self._tokenizer = [load_tokenizer(config)]
            codebook = codes_of_places(self._tokenizer[0])
            self._parts = self._tokenizer[0].token_part.cpu()
            self.head = LatentHead(*codebook.shape, width=1)
            del self.head.shift, self.head.sharpness  # a transformer's, which is not here yet
            self.head.codebook.copy_(codebook)
            if config.start is None or not self._load_head(config.start):
                self._fit_head()
            self.register_buffer("joint_map", joint_map(self.bank), persistent=False)

    def _start_from(self, run: Path) -> None:
        """Take what fits from another run; where the latents are others, fit their last layer in closed form."""
        state = averaged_state(run, "regressor.")
        own = self.regressor.state_dict()
        kept = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
        same = {"latent_mean", "latent_scale"} <= set(kept)
        if same:  # other bodies of the same kind have nearly the same statistics: those trained with are kept
            scale = own["latent_scale"]
            apart = (kept["latent_mean"] - own["latent_mean"]).abs() / scale
            same = bool((apart < 0.2).all() and ((kept["latent_scale"] / scale).log().abs() < 0.2).all())
        if not same:
            kept = {n: v for n, v in kept.items() if not n.startswith(("latent", "sureness", "known"))}
        self.regressor.load_state_dict(kept, strict=False)
        if not same:
            self._fit_last_layer()

    def _load_head(self, run: Path) -> bool:
        """Take precisions from another run on the same codes; False where it has none."""
        state = averaged_state(run, "head.")
        if "codebook" not in state or not torch.equal(state["codebook"], self.head.codebook):
            return False
        # A masked model's head also holds what belongs to its transformer.
        self.head.load_state_dict({name: state[name] for name in self.head.state_dict()})
        return True

    @torch.no_grad()
    def _fit_last_layer(self, rounds: int = 40, ridge: float = 1e-2) -> None:
        """Ridge regression of the latents on the last hidden layer."""
        generator = torch.Generator().manual_seed(5)
        regressor = self.regressor.eval()
        width = regressor.norm.normalized_shape[0] + 1
        gram = torch.zeros(width, width)
        cross = torch.zeros(width, regressor.token_count * regressor.latent_size)
        for _ in range(rounds):
            batch = self.shard(0, 0, generator)
            hidden = F.pad(regressor(batch["features"]).hidden, (0, 1), value=1.0)
            target = (batch["latents"] - regressor.latent_mean) / regressor.latent_scale
            gram += hidden.T @ hidden
            cross += hidden.T @ target.flatten(1)
        gram += ridge * rounds * self.config.data.batch * torch.eye(width) * gram.diagonal().mean() / gram.trace()
        solution = torch.linalg.solve(gram, cross)
        regressor.latent.weight.copy_(solution[:-1].T)
        regressor.latent.bias.copy_(solution[-1])
        regressor.train()

    @torch.no_grad()
    def _fit_head(self, views: int = 4096) -> None:
        """Precisions from the regressor's present errors, on about so many views."""
        generator = torch.Generator().manual_seed(6)
        rounds = -(-views // self.config.data.batch)
        batches = [self.shard(0, 0, generator) for _ in range(rounds)]
        regressor = self.regressor.eval()
        errors = torch.cat([batch["latents"] - regressor(batch["features"]).latent for batch in batches])
        self.head.precision.copy_(whitening(errors))
        regressor.train()

    def losses(
        self, regression: Regression, batch: Batch, hidden: Tensor | None = None, nobody: int = 0
    ) -> dict[str, Tensor]:
        """hidden (B, T) bool: the places that count, all where it is None. The first `nobody` rows show no one."""
        error = (regression.latent.float() - batch["latents"]) / self.regressor.latent_scale
        if hidden is not None:
            error = error * hidden[..., None]
        share = 1.0 if hidden is None else hidden.float().mean().clamp_min(1e-3)
        losses = {
            "latent": error.square().mean() / share,
            **self.pose_losses(regression.rotation_6d, regression.camera, batch),
            "spread": spread_loss(regression, batch["rotation"]),
        }
        if hidden is not None:
            moved = ((error * self.regressor.latent_scale).flatten(1) @ self.joint_map).unflatten(1, (-1, 3))
            distance = (moved.square().sum(-1) + 1e-4).sqrt()
            losses["joints"] = distance.mean() / share
            if self.config.placed_weight:
                # A body that leans otherwise than it should may turn back, and one that turned wrong may lean.
                rotation = matrix_from_6d(regression.rotation_6d.float())
                told, true = batch["joints"] + moved, batch["joints"]
                off = (told - told[:, :1]) @ rotation.mT - (true - true[:, :1]) @ batch["rotation"].mT
                losses["placed"] = (off.square().sum(-1) + 1e-4).sqrt()[nobody:].mean()
        return losses

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.bank.tokens is None:
            losses = self.losses(self.regressor(batch["features"]), batch)
            return weighted(losses, self.config), losses
        features = batch["features"].clone()
        nobody = round(self.config.unconditional * len(features))
        features[:nobody] = 0.0
        masks = step_mask_generator(features.device)
        visible = draw_known(len(features), self._parts, masks, self.config)
        said = self.regressor(features, batch["latents"], visible)
        with torch.autocast(features.device.type, enabled=False):
            losses = self.losses(said, batch, ~visible, nobody)
        # A part of the batch is enough for the codes' probabilities: they cost as much as all the rest.
        rows = slice(None, None, self.config.token_rows)
        logits = self.head(None, said.latent[rows], said.sureness[rows])
        losses["tokens"] = masked_cross_entropy(logits, batch["tokens"][rows], visible[rows])
        return weighted(losses, self.config), losses

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        results = {}
        for name, options in VALIDATION.items():
            batch = self.held_out(options=options)
            regression = self.regressor(batch["features"])
            losses = self.losses(regression, batch)
            results |= {f"{name}_{key}": float(value) for key, value in losses.items()}
            results[f"{name}_degrees"] = float(degrees(regression.rotation_6d, batch["rotation"]).median())
            if self.bank.tokens is None:
                results[f"{name}_surface_pa"] = float(
                    metrics.aligned_distances(regression.latent, batch["latents"]).mean()
                )
            else:
                moved = (regression.latent - batch["latents"]).flatten(1) @ self.joint_map
                truth = batch["joints"]
                joints = (truth + moved.unflatten(1, (-1, 3)))[:, metrics.BODY22_TO_LSP14]
                errors = metrics.aligned_distances(joints, truth[:, metrics.BODY22_TO_LSP14])
                results[f"{name}_pa_mpjpe"] = float(errors.mean())
                visible = draw_visible(batch["tokens"], torch.Generator().manual_seed(0))
                for case, known in (("tokens", torch.zeros_like(visible)), ("known_tokens", visible)):
                    said = self.regressor(batch["features"], batch["latents"], known)
                    logits = self.head(None, said.latent, said.sureness)
                    results[f"{name}_{case}"] = float(masked_cross_entropy(logits, batch["tokens"], known))
        return results

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out bodies as the tokenizer has them (left), and what the landmarks alone say (right)."""
        if self.bank.tokens is None:
            return {}
        batch = self.held_out(3, VALIDATION["whole"])
        tokenizer = self._tokenizer[0].to(batch["latents"].device)
        shown = [batch["latents"], self.regressor(batch["features"]).latent.float()]
        columns = [tokenizer.decode_latent(latents).cpu().numpy() for latents in shown]
        return {"truth_regressed": figures.compare(columns, Body.bundled().faces.numpy())}


def joint_map(bank: Bank, count: int = 20000, ridge: float = 1e-3) -> Tensor:
    """How the 22 joints move with the latents, (T · D, 66) metres: ridge regression over a bank's bodies.

    Tokens decode nearly linearly, so that a matrix says in a thousandth of the time how far joints are off.
    """
    latents, joints = bank.latents[:count].float().flatten(1), bank.joints[:count].flatten(1)
    centred = latents - latents.mean(0)
    gram = centred.T @ centred + ridge * len(centred) * torch.eye(centred.shape[1])
    solution = torch.linalg.solve(gram, centred.T @ (joints - joints.mean(0)))
    left = (centred @ solution - (joints - joints.mean(0))).unflatten(1, (-1, 3)).norm(dim=-1)
    print(f"joints follow the latents linearly to within {1000 * left.mean():.1f} mm")
    return solution


def spread_loss(regression: Regression, rotation: Tensor) -> Tensor:
    """Negative log-likelihood of the rotation's error (B, 3) about the camera's axes; teaches the spread alone."""
    predicted = matrix_from_6d(regression.rotation_6d.detach().float())
    error = axis_angle_from_matrix(rotation @ predicted.mT)
    spread = regression.rotation_spread
    return (spread.log() + 0.5 * (error / spread).square().clamp(max=20.0)).mean()


def whitening(errors: Tensor, floor: float = 1e-3) -> Tensor:
    """A (T, D, D) with cov(A e) = 1 at each place, for the errors e (N, T, D) as columns."""
    centred = errors - errors.mean(0)
    covariance = torch.einsum("ntd,nte->tde", centred, centred) / len(errors)
    scale = covariance.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    covariance = covariance + floor * scale * torch.eye(errors.shape[-1])
    return torch.linalg.inv(torch.linalg.cholesky(covariance))
