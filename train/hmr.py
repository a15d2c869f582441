"""Train the bundled model, landmarks → tokens: first the regressor (minutes), then the masked model on top of it.

    python -m train.hmr regressor --run runs/regressor data.bank=bank.pt data.validation=val.pt
    python -m train.hmr masked --run runs/masked data.bank=bank.pt … start=runs/regressor tokenizer=MODEL_FOLDER

Bodies come from a bank (`train.data.bank`), views of them are drawn anew in every step. Both stages share the data and
the pose losses; `stage` in the configuration says which one runs.
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

from mega_backend.model.mega import Mega
from mega_backend.model.prior import LandmarkRegressor, Regression
from mega_backend.model.sampling import likeliest
from mega_backend.rotations import matrix_from_6d
from train import figures, metrics
from train.config import Config, load, parser, peek
from train.data import views
from train.data.bank import Bank
from train.loop import Batch, LoopConfig, Task, seeded, train
from train.pretrain import draw_visible, masked_cross_entropy, step_mask_generator


class DataConfig(Config):
    """Bodies and views."""

    bank: Path = Field(description="bodies to train on, written by train.data.bank")
    validation: Path = Field(description="bodies to validate on")
    batch: int = Field(512, gt=0, description="views of one shard of a step")


class HmrConfig(Config):
    """One stage of training from landmarks."""

    stage: Literal["regressor", "masked"]
    loop: LoopConfig
    data: DataConfig
    model: dict[str, Any] = Field(description="regressor: width, depth, dropout; masked: settings of Mega")
    tokenizer: Path | None = Field(None, description="model folder that holds the tokenizer (masked stage)")
    start: Path | None = Field(None, description="run folder whose weights this stage begins with")
    start_masked: Path | None = Field(
        None, description="masked: run whose model, but for the regressor, it begins with"
    )
    unconditional: float = Field(0.25, ge=0, lt=1, description="masked: share of the bodies shown without conditioning")
    frozen_prior: bool = Field(True, description="masked: the regressor stays as stage 1 left it")
    unconditional_weight: float = Field(0.5, ge=0)
    latent_weight: float = Field(1.0, ge=0)
    rotation_weight: float = Field(1.0, ge=0)
    camera_weight: float = Field(1.0, ge=0)


class ViewTask(Task):
    """Bodies of a bank under fresh synthetic views, drawn where the network is."""

    data_on_device = True

    def __init__(self, config: HmrConfig) -> None:
        super().__init__()
        self.config = config
        self.bank, self.validation = Bank.load(config.data.bank), Bank.load(config.data.validation)
        if self.bank.latents is None:
            raise ValueError(
                f"{config.data.bank} holds no latents: encode it with `python -m train.data.bank --tokenizer`"
            )

    def shard(self, step: int, shard: int, generator: torch.Generator) -> Batch:
        self.bank = self.bank.to(generator.device)
        index = torch.randint(len(self.bank), (self.config.data.batch,), generator=generator, device=generator.device)
        return self.batch(self.bank, index, generator, views.ViewOptions())

    @staticmethod
    def batch(bank: Bank, index: Tensor, generator: torch.Generator, options: views.ViewOptions) -> Batch:
        """Features and truth of one view of each body."""
        view = views.draw(bank.landmarks[index], bank.root[index], generator, options)
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
    """Stage 1: squared error of the latents in units of their spread, rotation, camera."""

    def __init__(self, config: HmrConfig) -> None:
        super().__init__(config)
        latents = self.bank.latents
        self.regressor = LandmarkRegressor(latents.shape[1], latents.shape[2], **config.model)
        sample = latents[:: max(1, len(latents) // 20000)].float()
        mean = sample.mean(0)
        self.regressor.latent_mean.copy_(mean)
        self.regressor.latent_scale.fill_((sample - mean).square().mean().sqrt())
        if config.start:
            self._start_from(config.start)

    def _start_from(self, run: Path) -> None:
        """Take everything but the last layer of the latents from another run, and fit that layer in closed form."""
        state = averaged_state(run, "regressor.")
        own = self.regressor.state_dict()
        kept = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
        self.regressor.load_state_dict({n: v for n, v in kept.items() if not n.startswith("latent_")}, strict=False)
        if "latent.weight" not in kept:
            self._fit_last_layer()

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

    def losses(self, regression: Regression, batch: Batch) -> dict[str, Tensor]:
        error = (regression.latent.float() - batch["latents"]) / self.regressor.latent_scale
        return {
            "latent": error.square().mean(),
            **self.pose_losses(regression.rotation_6d, regression.camera, batch),
        }

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.losses(self.regressor(batch["features"]), batch)
        return weighted(losses, self.config), losses

    def validate(self) -> dict[str, float]:
        results = {}
        for name, options in VALIDATION.items():
            batch = self.held_out(options=options)
            regression = self.regressor(batch["features"])
            losses = self.losses(regression, batch)
            results |= {f"{name}_{key}": float(value.detach()) for key, value in losses.items()}
            results[f"{name}_degrees"] = float(degrees(regression.rotation_6d, batch["rotation"]).median())
            if self.bank.tokens is None:
                results[f"{name}_surface_pa"] = float(
                    metrics.aligned_distances(regression.latent, batch["latents"]).mean()
                )
        return results


VALIDATION = {
    "whole": views.ViewOptions().benign(),
    "flat": views.ViewOptions(cut_off=0.0, occluded=0.0, missing=0.0, has_estimate=0.0),
    "any": views.ViewOptions(),
}


def weighted(losses: dict[str, Tensor], config: HmrConfig) -> Tensor:
    """The sum of the losses, each by the weight the configuration gives it (1 where it names none)."""
    return sum(getattr(config, f"{name}_weight", 1.0) * loss for name, loss in losses.items())


def degrees(rotation_6d: Tensor, rotation: Tensor) -> Tensor:
    """Angle (B) between predicted and true rotations."""
    trace = (matrix_from_6d(rotation_6d.float()) * rotation).sum((1, 2))
    return torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1)))


def averaged_state(run: Path, prefix: str) -> dict[str, Tensor]:
    """State of a part of a run's task under its own names, averaged weights in the place of the last ones."""
    path = run / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{run} holds no checkpoint: give the folder of a finished run")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    state = dict(saved["task"])
    if saved["ema"]:
        state |= saved["ema"]["average"]
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


class MaskedTask(ViewTask):
    """Stage 2: cross-entropy of the masked tokens, under landmarks and under nothing."""

    def __init__(self, config: HmrConfig) -> None:
        super().__init__(config)
        if config.tokenizer is None:
            raise ValueError("the masked stage needs tokenizer=FOLDER, the model folder whose tokens the bank holds")
        if self.bank.tokens is None:
            raise ValueError(
                f"{config.data.bank} holds no tokens: encode it with `python -m train.data.bank --tokenizer`"
            )
        from mega_backend import checkpoint

        # Outside the module's own parameters: it is not trained, and the model folder already holds it.
        self._tokenizer = [checkpoint.load(config.tokenizer).tokenizer]
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
        if config.start:
            self.model.prior.load_state_dict(averaged_state(config.start, "regressor."))
        self._begin_as_regressor()
        if config.start_masked:
            state = averaged_state(config.start_masked, "model.")
            own = {name: value for name, value in state.items() if not name.startswith("prior.")}
            self.model.load_state_dict(own, strict=False)
        self.model.prior.requires_grad_(not config.frozen_prior)

    @property
    def tokenizer(self) -> nn.Module:
        """The tokenizer, where the model is."""
        return self._tokenizer[0].to(self.model.encoder.cls_token.device)

    @torch.no_grad()
    def _begin_as_regressor(self, count: int = 8000) -> None:
        """Logits that start from the regressor: codes, how well each latent is known, and the best overall trust α."""
        model, head = self.model.eval(), self.model.latent_head
        head.codebook.copy_(self.tokenizer.codebook)
        generator = torch.Generator().manual_seed(6)
        index = torch.arange(min(count, len(self.validation)))
        batch = self.batch(self.validation, index, generator, views.ViewOptions())
        codes = head.codebook[batch["tokens"]]
        latent = model.prior(batch["features"]).latent
        head.precision.copy_(whitening(codes - latent))
        drawn = head.codebook[self.bank.tokens[: 4 * count].long()]
        head.unconditional.copy_(drawn.mean(0))
        head.unconditional_precision.copy_(whitening(drawn - drawn.mean(0)))
        nn.init.zeros_(model.decoder.head.weight)
        nn.init.zeros_(model.decoder.head.bias)
        # Tokens are embedded where their codes lie, so that near codes start out alike.
        width = model.config["width"]
        spread = torch.randn(head.codebook.shape[1], width, generator=generator) / head.codebook.shape[1] ** 0.5
        noise = torch.randn(model.encoder.proj.weight.shape, generator=generator)
        model.encoder.proj.weight.copy_(0.3 * head.codebook @ spread + 0.05 * noise)

        empty = torch.zeros(len(index), model.token_count, width)
        logits = head(empty, latent)
        scales = torch.logspace(-1, 0.7, 18, base=10.0)
        losses = [float(F.cross_entropy((a * logits).flatten(0, 1), batch["tokens"].flatten())) for a in scales]
        best = scales[int(torch.tensor(losses).argmin())]
        head.precision.mul_(best.sqrt())
        print(f"trust in the regressor: {best:.2f} of its measured precision, cross-entropy {min(losses):.3f}")
        model.train()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch["tokens"]
        visible = draw_visible(tokens, step_mask_generator())
        condition = self.model.condition(batch["features"])
        free = round(self.config.unconditional * len(tokens))
        shown = slice(free, None)
        logits = self.model.logits(tokens[shown], visible[shown], type(condition)(*(part[shown] for part in condition)))
        losses = {"tokens": masked_cross_entropy(logits, tokens[shown], visible[shown])}
        if not self.config.frozen_prior:
            error = (condition.latent.float() - batch["latents"]) / self.model.prior.latent_scale
            losses["latent"] = error.square().mean()
            losses |= self.pose_losses(condition.rotation_6d, condition.camera, batch)
        if free:
            alone = self.model.logits(tokens[:free], visible[:free], None)
            losses["unconditional"] = masked_cross_entropy(alone, tokens[:free], visible[:free])
        return weighted(losses, self.config), losses

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

    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out bodies: the truth as the tokenizer has it, the likeliest answer, a sample."""
        batch = self.held_out(3, VALIDATION["whole"])
        condition = self.model.condition(batch["features"])
        shown = [batch["tokens"], self.model.best(condition).tokens, self.model.sample(condition, 1)[:, 0]]
        columns = [self.tokenizer.decode(tokens).cpu().numpy() for tokens in shown]
        return {"truth_likeliest_sample": figures.compare(columns, self._body().faces.numpy())}

    def _body(self) -> nn.Module:
        from mega_backend.body import Body

        return Body.bundled()


def whitening(errors: Tensor, floor: float = 1e-3) -> Tensor:
    """A (T, D, D) with cov(A e) = 1 at each place, for the errors e (N, T, D) as columns."""
    centred = errors - errors.mean(0)
    covariance = torch.einsum("ntd,nte->tde", centred, centred) / len(errors)
    scale = covariance.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    covariance = covariance + floor * scale * torch.eye(errors.shape[-1])
    return torch.linalg.inv(torch.linalg.cholesky(covariance))


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
    main()
