"""Train what recovers people, from landmarks (the bundled model) or from pictures (the papers'): `stage` says which.

    python -m train.hmr regressor --run runs/regressor data.bank=bank.pt data.validation=val.pt
    python -m train.hmr masked --run runs/masked data.bank=bank.pt … start=runs/regressor tokenizer=MODEL_FOLDER
    python -m train.hmr mega_hrnet --run runs/mega_hrnet tokenizer=MODEL_FOLDER                (see `train.images`)

Landmarks → tokens, which is here, has two stages, the regressor (minutes) and the masked model on top of it. Bodies
come from a bank (`train.data.bank`), views of them are drawn anew in every step; both stages share these and losses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mega_backend import checkpoint
from mega_backend.body import Body
from mega_backend.model.mega import Mega
from mega_backend.model.prior import LandmarkRegressor, LatentHead, Regression
from mega_backend.model.sampling import code_moments, likeliest, lookup
from mega_backend.rotations import axis_angle_from_matrix, matrix_from_6d
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train import command, figures, metrics
from train.config import Config, UserError, load, parser, peek
from train.data import views
from train.data.bank import Bank
from train.loop import Batch, LoopConfig, Task, read_checkpoint, seeded, train
from train.pretrain import draw_visible, masked_cross_entropy, step_mask_generator


class DataConfig(Config):
    """Bodies and views."""

    bank: Path = Field(description="bodies to train on, written by train.data.bank")
    validation: Path = Field(description="bodies to validate on")
    batch: int = Field(512, gt=0, description="views of one shard of a step")
    detections: tuple[Path, ...] = Field((), description="what a detector said of people: files of train.data.detector")


class HmrConfig(Config):
    """One stage of training from landmarks."""

    stage: Literal["regressor", "masked"]
    loop: LoopConfig
    data: DataConfig
    model: dict[str, Any] = Field(description="regressor: width, depth, dropout; masked: settings of Mega")
    tokenizer: Path | None = Field(None, description="model folder that holds the tokenizer, where the bank has tokens")
    start: Path | None = Field(None, description="run or model folder whose weights this stage begins with")
    start_masked: Path | None = Field(
        None, description="masked: run whose model, but for the regressor, it begins with"
    )
    unconditional: float = Field(0.15, ge=0, lt=1, description="share of the bodies shown without conditioning")
    unconditional_weight: float = Field(0.5, ge=0, description="masked: of the tokens of those bodies")
    nothing_known: float = Field(0.4, ge=0, le=1, description="share of the bodies of which no token is known")
    all_known: float = Field(0.1, ge=0, le=1, description="share of the bodies of which all tokens are known")
    token_rows: int = Field(3, gt=0, description="regressor: every n-th body counts in the cross-entropy")
    frozen_prior: bool = Field(True, description="masked: the regressor stays as stage 1 left it")
    latent_weight: float = Field(1.0, ge=0)
    joints_weight: float = Field(6.0, ge=0, description="of a metre, joints in the body's own axes")
    placed_weight: float = Field(0.0, ge=0, description="of a metre, joints from the pelvis in the camera's axes")
    tokens_weight: float = Field(0.1, ge=0)
    rotation_weight: float = Field(1.0, ge=0)
    camera_weight: float = Field(1.0, ge=0)
    spread_weight: float = Field(0.02, ge=0)


class ViewTask(Task):
    """Bodies of a bank under fresh synthetic views, drawn where the network is."""

    data_on_device = True

    def __init__(self, config: HmrConfig) -> None:
        super().__init__()
        self.config = config
        self.bank, self.validation = Bank.load(config.data.bank), Bank.load(config.data.validation)
        self.errors = None
        if config.data.detections:
            from train.data.detections import Detections

            seen = Detections.load(*config.data.detections)
            body = Body.bundled()
            bodies = seen.bank(body.subset(torch.arange(1)))
            self.errors = views.measured(bodies.landmarks, seen.views, seen.true_landmarks)
        if self.bank.latents is None:
            raise UserError(
                f"{config.data.bank} holds no latents: encode it with `python -m train.data.bank --tokenizer`"
            )

    def shard(self, step: int, shard: int, generator: torch.Generator) -> Batch:
        self.bank = self.bank.to(generator.device)
        index = torch.randint(len(self.bank), (self.config.data.batch,), generator=generator, device=generator.device)
        errors = None if self.errors is None else views.Measured(*(part.to(generator.device) for part in self.errors))
        return self.batch(self.bank, index, generator, views.ViewOptions(), errors)

    @staticmethod
    def batch(
        bank: Bank,
        index: Tensor,
        generator: torch.Generator,
        options: views.ViewOptions,
        errors: views.Measured | None = None,
    ) -> Batch:
        """Features and truth of one view of each body."""
        view = views.draw(bank.landmarks[index], bank.root[index], generator, options, errors)
        batch = {
            "features": view.features,
            "rotation": view.rotation,
            "camera": view.camera,
            "joints": bank.joints[index],
            "latents": bank.latents[index].float(),
        }
        if bank.tokens is not None:
            batch["tokens"] = bank.tokens[index].long()
        return batch

    def pose_losses(self, rotation_6d: Tensor, camera: Tensor, batch: Batch) -> dict[str, Tensor]:
        """MSE between rotation matrices; L1 between the true joints under the predicted and the true projection."""
        rotation = matrix_from_6d(rotation_6d.float())
        predicted = project(camera.float(), batch["joints"] @ rotation.mT)
        true = project(batch["camera"], batch["joints"] @ batch["rotation"].mT)
        return {
            "rotation": F.mse_loss(rotation, batch["rotation"]),
            "camera": (predicted - true).abs().clamp(max=2.0).mean(),
        }

    def held_out(self, count: int = 1000, options: views.ViewOptions | None = None) -> Batch:
        """The first bodies of the validation bank under fixed views."""
        index = torch.arange(min(count, len(self.validation)))
        generator = torch.Generator().manual_seed(20)  # on the CPU: the same views on every device
        batch = self.batch(self.validation, index, generator, options or views.ViewOptions().benign())
        device = next(self.parameters()).device
        return {name: value.to(device) for name, value in batch.items()}


def project(camera: Tensor, points: Tensor) -> Tensor:
    """Weak perspective: camera (B, 3) = s, tx, ty and points (B, N, 3) in camera axes → crop coordinates (B, N, 2)."""
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])


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


def draw_known(count: int, parts: Tensor, generator: torch.Generator, config: HmrConfig) -> Tensor:
    """Which tokens (count, T) of each body are known; parts (T): the body part of each. On the generator's device.

    Some bodies know no token, as when an answer begins; some all, as when the rotation is asked for; the others know
    some at random places or whole parts of the body.
    """
    device = generator.device

    def uniform(width: int) -> Tensor:
        return torch.rand(count, width, generator=generator, device=device)

    known = draw_visible(torch.zeros(count, len(parts), dtype=torch.long, device=device), generator)
    kept = uniform(int(parts.max()) + 1) < uniform(1)
    known = torch.where(uniform(1) < 0.25, kept[:, parts.long().to(device)], known)
    kind = uniform(1)
    known = known & (kind >= config.nothing_known)
    return known | (kind >= 1 - config.all_known)


VALIDATION = {
    "whole": views.ViewOptions().benign(),
    "poor": views.ViewOptions().benign(poor=1.0),
    "flat": views.ViewOptions(cut_off=0.0, occluded=0.0, missing=0.0, has_estimate=0.0),
    "any": views.ViewOptions(),
}


def weighted(losses: dict[str, Tensor], config: HmrConfig) -> Tensor:
    """The sum of the losses, each by the weight the configuration gives it (1 where it names none)."""
    return sum(getattr(config, f"{name}_weight", 1.0) * loss for name, loss in losses.items())


def degrees(rotation_6d: Tensor, rotation: Tensor) -> Tensor:
    """Angle (B) between predicted and true rotations."""
    return metrics.degrees(matrix_from_6d(rotation_6d.float()), rotation)


IN_A_MODEL = {"regressor.": "prior.", "head.": "latent_head.", "model.": ""}
"""Where the parts of the stages' tasks are in a finished model."""


def averaged_state(run: Path, prefix: str) -> dict[str, Tensor]:
    """State of a part of a run's task under its own names, averaged weights in the place of the last ones.

    run: a run's folder, or a model folder, to go on from finished weights.
    """
    if (run / "config.json").is_file():
        model, start = checkpoint.load(run).model, IN_A_MODEL[prefix]
        if model is None:
            raise UserError(f"{run} holds no model to begin with: give the folder of one, or of a run")
        return {name[len(start) :]: value for name, value in model.state_dict().items() if name.startswith(start)}
    saved = read_checkpoint(run)
    state = dict(saved["task"])
    if saved["ema"]:
        state |= saved["ema"]["average"]
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def load_tokenizer(config: HmrConfig) -> MeshVQVAE:
    """The tokenizer that the configuration names."""
    if config.tokenizer is None:
        raise UserError("name the model folder whose tokens the bank holds: tokenizer=FOLDER")
    tokenizer = checkpoint.load(config.tokenizer).tokenizer
    if tokenizer is None:
        raise UserError(f"{config.tokenizer} holds no tokenizer: name the folder that encoded the bank")
    return tokenizer


def codes_of_places(tokenizer: MeshVQVAE) -> Tensor:
    """Where the codes of each place lie, (T, K, D)."""
    codebook = tokenizer.codebook
    return codebook if codebook.dim() == 3 else codebook.expand(tokenizer.token_count, -1, -1)


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


def whitening(errors: Tensor, floor: float = 1e-3) -> Tensor:
    """A (T, D, D) with cov(A e) = 1 at each place, for the errors e (N, T, D) as columns."""
    centred = errors - errors.mean(0)
    covariance = torch.einsum("ntd,nte->tde", centred, centred) / len(errors)
    scale = covariance.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    covariance = covariance + floor * scale * torch.eye(errors.shape[-1])
    return torch.linalg.inv(torch.linalg.cholesky(covariance))


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


def main() -> None:
    cli = parser(__doc__.splitlines()[0], "regressor")
    args = cli.parse_intermixed_args()
    if (stage := str(peek(args.config, args.overrides, "stage"))).startswith("image"):
        from train import image_reader, images

        (image_reader if stage == "image_reader" else images).run(args.config, args.overrides, args.run)
        return
    config = load(HmrConfig, args.config, args.overrides)
    task = seeded({"regressor": RegressorTask, "masked": MaskedTask}[config.stage], config)
    if config.stage == "masked":  # what `train.bundle` builds the model from
        args.run.mkdir(parents=True, exist_ok=True)
        (args.run / "model.json").write_text(json.dumps(task.model.config, indent=2) + "\n")
    train(task, config.loop, args.run)


if __name__ == "__main__":
    command.run(main)
