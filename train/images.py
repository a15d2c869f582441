"""Training from pictures: MEGA or VQ-HPS over an image backbone, on SMPL datasets or on synthetic pictures of Anny.

    python -m train.hmr mega_hrnet --run runs/coco tokenizer=FOLDER …      (the papers' models, with their datasets)
    python -m train.hmr image_regressor --run … reader=runs/image_reader   (synthetic pictures, the bundled body)
    python -m train.hmr image_masked --run … start=runs/image_regressor    (the same, then tokens)
    python -m train.images CONFIG --run runs/image … --export FOLDER       (the weights so far, as a model folder)

Workers decode and augment pictures (`train.data.pictures`); bodies are posed and encoded in batches on the device.
Losses: cross-entropy of the masked tokens (of all, for VQ-HPS), mean squared error between rotation matrices, L1
error of the reprojected joints. The reprojected mesh is decoded from the likeliest tokens without gradient, so that
this term trains rotation and camera.

A landmark model (`landmark_model`) behind a reader (`train.image_reader`) is trained in two steps: `image_regressor`
fits what is regressed, latents, rotation and camera, through the landmarks down to the pixels; then the masked tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mega_backend import checkpoint
from mega_backend.model.backbones.reader import Reader
from mega_backend.model.backbones.reader import features as landmark_features
from mega_backend.model.mega import Condition, Mega
from mega_backend.model.sampling import likeliest
from mega_backend.model.vqhps import VQHPS
from mega_backend.recovery.conditioning import IMAGENET_MEAN, IMAGENET_STD
from mega_backend.rotations import matrix_from_6d, matrix_from_axis_angle
from train import command, figures, metrics, readings
from train.config import Config, UserError, load, parser
from train.data import annotations
from train.data.anny import AnnyBodies
from train.data.landmarks import placed, with_landmarks
from train.data.pictures import Augmentation, Mixture, Source, in_order
from train.data.smpl import SmplBodies
from train.loop import Batch, LoopConfig, Task, is_first, read_checkpoint, seeded, train
from train.pretrain import draw_visible, masked_cross_entropy
from train.weights import averaged_state, load_backbone, start_from

PELVIS = 14
"""The pelvis among the 17 annotated joints; the first 14 are those of the standard protocol."""


class SourceConfig(Config):
    """A dataset file, the folder of its pictures, and its share of every batch."""

    file: Path
    pictures: Path
    share: float = Field(1.0, ge=0)
    keep: bool = Field(False, description="decoded pictures stay in memory: for small ones that are read often")

    def load(self) -> Source:
        return Source(annotations.read(self.file), self.pictures, self.share, {} if self.keep else None)


class BodyConfig(Config):
    """Whose bodies the datasets describe."""

    kind: Literal["smpl", "anny"] = "smpl"
    models: dict[Literal["neutral", "male", "female"], Path] = Field(
        default_factory=dict, description="SMPL or SMPL-H file of each gender in use"
    )
    h36m: Path | None = Field(None, description="J_regressor_h36m.npy")

    def load(self) -> SmplBodies | AnnyBodies:
        return AnnyBodies() if self.kind == "anny" else SmplBodies(self.models, self.h36m)


class ImageConfig(Config):
    """Training from pictures."""

    stage: Literal["image", "image_regressor"]
    loop: LoopConfig
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    validation: SourceConfig | None = None
    validation_people: int = Field(200, gt=0)
    batch: int = Field(64, gt=0, description="people of one shard of a step")
    augmentation: Augmentation = Augmentation()
    body: BodyConfig = BodyConfig()
    tokenizer: Path = Field(description="model folder that holds the tokenizer")
    model: dict[str, Any] = Field(description='kind "mega" or "vqhps", and the settings of that class')
    landmark_model: Path | None = Field(
        None, description="folder of a MEGA that reads landmarks: the model is that one behind model.backbone, a reader"
    )
    reader: Path | None = Field(None, description="run of image_reader whose network the backbone begins as")
    start: Path | None = Field(None, description="run or model folder whose weights training begins with")
    frozen: tuple[str, ...] = Field((), description="parts of the model that stay as they are: backbone, prior, …")
    backbone_weights: Path | None = Field(None, description="weights of the backbone alone, .pth or .safetensors")
    token_weight: float = Field(1.0, ge=0)
    latent_weight: float = Field(1.0, ge=0)
    rotation_weight: float = Field(1.0, ge=0)
    joint_weight: float = Field(1.0, ge=0)
    reading_weight: float = Field(0.0, ge=0, description="image_regressor: of the reader's own losses, which go on")


class ImageTask(Task):
    """Pictures in, tokens, rotation and camera out."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        sources = [source.load() for source in config.sources]
        loaded = checkpoint.load(config.tokenizer)
        if loaded.tokenizer is None:
            raise UserError(f"{config.tokenizer} holds no tokenizer: give the model folder of a trained one")
        bodies = config.body.load()
        tokenizer = loaded.tokenizer
        if tokenizer.config["vertices"] != bodies.vertex_count:
            raise UserError(
                f"the tokenizer is for {tokenizer.config['vertices']} vertices, the body has {bodies.vertex_count}: "
                "give a tokenizer of that body"
            )
        for source in sources:
            check_source(source, bodies)
        # Outside the module: neither is trained, and both are large files of their own.
        self._fixed = _Fixed(bodies, tokenizer)
        if config.landmark_model:
            self.model = behind_reader(config.landmark_model, config.model, tokenizer)
        else:
            self.model = build(config.model, tokenizer, bodies)
        if config.stage == "image_regressor" and getattr(self.model, "kind", None) != "landmarks":
            raise UserError("image_regressor trains a landmark model behind a reader: give landmark_model=FOLDER")
        if config.backbone_weights:
            load_backbone(self.model, config.backbone_weights)
        if config.reader:
            self.model.backbone.load_state_dict(averaged_state(config.reader, "reader."))
        if config.start:
            start_from(self.model, config.start)
        self._frozen = [self.model.get_submodule(name) for name in config.frozen]
        for part in self._frozen:
            part.requires_grad_(False)
        self.size = _input_size(self.model)
        self._reads = config.stage == "image_regressor" and config.reading_weight > 0
        if self._reads:
            if not isinstance(self.model.backbone, Reader):
                raise UserError("reading_weight is for a model behind a reader: set model.backbone.name=reader")
            sources = [with_landmarks_of(source, bodies) for source in sources]
            # Landmarks are exact on any subset of the vertices.
            self._landmark_bodies = [bodies.subset(torch.arange(1))]
        self._mixture = Mixture(sources, self.size, config.augmentation)
        self._joint_set = sources[0].annotations.joint_set
        self._held_out = None
        if config.validation:
            source = config.validation.load()
            check_source(source, bodies)
            self._held_out_set = source.annotations.joint_set
            self._held_out = held_out(source, self.size, config.validation_people)
        self.train()

    def train(self, mode: bool = True) -> ImageTask:
        super().train(mode)
        for part in self._frozen:  # statistics of batch normalisation stay too
            part.eval()
        return self

    def shard(self, step: int, shard: int, generator: torch.Generator) -> Batch:
        batch = self._mixture.batch(self.config.batch, generator)
        empty = torch.empty(self.config.batch, self.model.token_count)
        return {**batch, "visible": draw_visible(empty, generator)}

    def predict(self, batch: Batch, tokens: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, T, K), rotation (B, 3, 3), camera (B, 3)."""
        features = self.model.features(normalise(batch["picture"]))
        if isinstance(self.model, Mega):
            features = self.model.condition(features)
            logits = self.model.logits(tokens, visible, features)
        else:
            logits = self.model.logits(features, alone=True)
        rotation_6d, camera = self.model.pose(features)
        return logits.float(), matrix_from_6d(rotation_6d.float()), camera.float()

    def regress(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, T, D), rotation (B, 3, 3), camera (B, 3) before any token."""
        return _regressed(self.model.condition(self.model.features(normalise(batch["picture"]))))

    def _read_and_regress(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The reader's own loss, and what `regress` says, of one look."""
        reading = self.model.backbone.read(normalise(batch["picture"]))
        device = batch["pose"].device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            places = placed(self._landmark_bodies[0].to(device), batch["pose"], batch["shape"])
        loss = readings.total(readings.losses(reading, batch["joints"], places))
        return loss, _regressed(self.model.condition(landmark_features(reading)))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        fixed = self._fixed.to(batch["pose"].device)
        tokens = fixed.tokens(batch)
        if self.config.stage == "image_regressor":
            losses, scalars = {}, {}
            if self._reads:
                losses["reading"], (guess, rotation, camera) = self._read_and_regress(batch)
            else:
                guess, rotation, camera = self.regress(batch)
            error = (guess - fixed.lookup(tokens)) / self.model.prior.latent_scale
            losses["latent"] = error.square().mean()
        else:
            visible = batch["visible"] if isinstance(self.model, Mega) else torch.zeros_like(batch["visible"])
            logits, rotation, camera = self.predict(batch, tokens, visible)
            likely = torch.where(visible, tokens, self._best(logits.detach()))
            guess = fixed.lookup(likely)
            losses = {"token": masked_cross_entropy(logits, tokens, visible)}
            correct = (likely == tokens) & ~visible
            scalars = {"accuracy": correct.sum() / (~visible).sum().clamp_min(1)}
        target, weight = batch["joints"][..., :2], batch["joints"][..., 2:]
        reprojected = self._reprojected(guess.detach(), rotation, camera, self._joint_set)
        losses["rotation"] = F.mse_loss(rotation, matrix_from_axis_angle(batch["pose"][:, :3]))
        losses["joint"] = (weight * (reprojected - target).abs()).sum() / (2 * weight.sum()).clamp_min(1)
        total = sum(getattr(self.config, f"{name}_weight") * loss for name, loss in losses.items())
        scalars |= {name: loss.detach() for name, loss in losses.items()}
        return total, {**scalars, "skipped": batch["skipped"].sum().float()}

    def _best(self, logits: Tensor) -> Tensor:
        """The deterministic answer (B, T) of logits (B, T, K), as the model gives it."""
        return likeliest(logits.log_softmax(-1), getattr(self.model, "codebook", None))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Errors of held-out people, deterministic answer: in mm by both protocols, of the rotation in degrees, of the
        reprojected joints in % of the box side; and what an answer that never looks would get (`metrics.blind`).
        """
        if self._held_out is None:
            return {}
        found: dict[str, list[Tensor]] = {}
        for start in range(0, len(self._held_out["pose"]), self.config.batch):
            batch = {name: value[start : start + self.config.batch] for name, value in self._held_out.items()}
            for name, errors in self._errors(batch).items():
                found.setdefault(name, []).append(errors)
        truth, rotation = (torch.cat(found.pop(name)) for name in ("truth", "true_rotation"))
        blind = {f"blind_{name}": value for name, value in metrics.blind(truth, rotation).items()}
        return {name: float(torch.cat(parts).mean()) for name, parts in found.items()} | blind

    def _answer(self, batch: Batch) -> tuple[Batch, Tensor, Tensor, Tensor]:
        """The batch on the model's device, and latents, rotation and camera of the deterministic answer."""
        device = next(self.model.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        if self.config.stage == "image_regressor":
            return batch, *self.regress(batch)
        hidden = torch.zeros(len(batch["pose"]), self.model.token_count, dtype=torch.long, device=device)
        logits, rotation, camera = self.predict(batch, hidden, hidden.bool())
        return batch, self._fixed.to(device).lookup(self._best(logits)), rotation, camera

    def _errors(self, batch: Batch) -> dict[str, Tensor]:
        batch, latents, rotation, camera = self._answer(batch)
        fixed = self._fixed.to(rotation.device)
        truth = fixed.bodies.canonical(batch["pose"][:, 3:], batch["shape"], batch["gender"])
        true_rotation = matrix_from_axis_angle(batch["pose"][:, :3])
        found = fixed.tokenizer.decode_latent(latents)
        joints, true_joints = fixed.joints(latents), fixed.bodies.joints(truth)
        centred = [metrics.moved_to(points, points[:, PELVIS])[:, :14] for points in (joints, true_joints)]
        standard = [points @ turn.mT for points, turn in zip(centred, (rotation, true_rotation), strict=True)]
        drawn = self._reprojected(latents, rotation, camera, self._held_out_set)
        off, known = (drawn - batch["joints"][..., :2]).norm(dim=-1), batch["joints"][..., 2]
        return {
            "mpjpe": metrics.distances(*standard),
            "pa_mpjpe": metrics.aligned_distances(*standard),
            "released_pve": metrics.distances(found @ rotation.mT, truth @ true_rotation.mT),
            "degrees": metrics.degrees(rotation, true_rotation),
            "percent_of_box": 50 * (known * off).sum(1) / known.sum(1).clamp_min(1),
            "truth": centred[1],
            "true_rotation": true_rotation,
        }

    def _reprojected(self, latents: Tensor, rotation: Tensor, camera: Tensor, joint_set: str) -> Tensor:
        """The joints (B, J, 2) of a set of annotations in crop coordinates, of a decoded answer."""
        name = "mediapipe33" if joint_set == "landmarks33" else joint_set
        joints = self._fixed.to(rotation.device).joints(latents, name) @ rotation.mT
        return camera[:, None, :1] * (joints[..., :2] + camera[:, None, 1:])

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out crops with the recovered mesh drawn over them."""
        if self._held_out is None:
            return {}
        batch = {name: value[:8] for name, value in self._held_out.items()}
        _, latents, rotation, camera = self._answer(batch)
        fixed = self._fixed.to(rotation.device)
        meshes = (fixed.tokenizer.decode_latent(latents) @ rotation.mT).cpu().numpy()
        faces = fixed.bodies.faces.cpu().numpy()
        crops = batch["picture"].permute(0, 2, 3, 1).numpy()
        drawn = [
            np.concatenate([crop, figures.over_crop(crop, mesh, weak, faces)])
            for crop, mesh, weak in zip(crops, meshes, camera.cpu().numpy(), strict=True)
        ]
        return {"recovered": np.concatenate(drawn, axis=1)}


class _Fixed:
    """Bodies and tokenizer, moved together; the pieces of them that a step needs."""

    def __init__(self, bodies: SmplBodies | AnnyBodies, tokenizer: nn.Module) -> None:
        self.bodies, self.tokenizer = bodies, tokenizer
        # Where the tokenizer convolves some of the vertices, only those are posed and decoded.
        self.posed = bodies.subset(tokenizer.points.long()) if tokenizer.lifted else bodies
        self._regressors: dict[str, Tensor] = {}
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> _Fixed:
        if self._device != device:
            self._device, self._regressors = device, {}
            for module in (self.bodies, self.posed, self.tokenizer):
                module.to(device)
        return self

    @torch.no_grad()
    def tokens(self, batch: Batch) -> Tensor:
        """True tokens (B, T), in full precision."""
        with torch.autocast(batch["pose"].device.type, enabled=False):
            points = self.posed.canonical(batch["pose"][:, 3:], batch["shape"], batch["gender"])
            return self.tokenizer.quantise(self.tokenizer.encode_points(points))[0]

    @torch.no_grad()
    def lookup(self, tokens: Tensor) -> Tensor:
        """The latents (B, T, D) that tokens (B, T) stand for."""
        return self.tokenizer.quantiser.lookup(tokens)

    @torch.no_grad()
    def joints(self, latents: Tensor, name: str = "h36m") -> Tensor:
        """Joints (B, J, 3) of decoded latents (B, T, D), canonical axes: the 17 annotated ones, or "smpl24"."""
        if name not in self._regressors:
            self._regressors[name] = joints_of_points(self.tokenizer, self.bodies.joint_matrix(name))
        with torch.autocast(latents.device.type, enabled=False):
            return self._regressors[name] @ self.tokenizer.decode_points(latents.float())


def _regressed(condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, rotation and camera that a landmark model knows before any token."""
    return condition.latent.float(), matrix_from_6d(condition.rotation_6d.float()), condition.camera.float()


def joints_of_points(tokenizer: nn.Module, regressor: Tensor) -> Tensor:
    """A joint regressor (J, V) of the full mesh as one (J, P) of the points that the tokenizer decodes."""
    if not tokenizer.lifted:
        return regressor
    places = tokenizer.lift_points.long().flatten()
    values = (regressor[:, :, None] * tokenizer.lift_weights[None]).flatten(1)
    return regressor.new_zeros(len(regressor), len(tokenizer.points)).index_add(1, places, values)


def normalise(pictures: Tensor) -> Tensor:
    """Crops (B, 3, H, W) uint8 → what the backbones read."""
    mean, std = (pictures.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pictures.float() / 255 - mean) / std


def build(settings: dict[str, Any], tokenizer: nn.Module, bodies: SmplBodies | AnnyBodies) -> Mega | VQHPS:
    """The model of a configuration over the tokenizer's tokens."""
    settings = dict(settings)
    kind = settings.pop("kind", "mega")
    sizes = {"token_count": tokenizer.token_count, "code_count": tokenizer.code_count}
    if kind == "mega":
        conditioning = dict(settings.pop("conditioning"))
        if "channels" not in conditioning:
            from mega_backend.model import backbones

            conditioning["channels"] = backbones.build(**conditioning["backbone"]).channels
        return Mega.from_config({**sizes, **settings, "conditioning": {"kind": "image", **conditioning}})
    if kind == "vqhps":
        if "initial_pose" not in settings:
            settings["initial_pose"] = bodies.initial_pose()
        return VQHPS.from_config({**sizes, **settings})
    raise UserError(f'model.kind must be "mega" or "vqhps", not {kind!r}')


def behind_reader(folder: Path, settings: dict[str, Any], tokenizer: nn.Module) -> Mega:
    """The landmark model of a folder, weights and all, behind a fresh reader; settings: {"backbone": {…}}.

    Raises:
        ValueError: the folder holds no such model, or one of other tokens than the tokenizer's.
    """
    loaded = checkpoint.load(folder).model
    if getattr(loaded, "kind", None) != "landmarks":
        raise UserError(f"{folder} holds no model that reads landmarks: give the folder of one")
    if (loaded.token_count, loaded.code_count) != (tokenizer.token_count, tokenizer.code_count):
        raise UserError(f"the model in {folder} is of other tokens than the tokenizer's: give the tokenizer it is of")
    config = {**loaded.config, "conditioning": {"kind": "landmarks", **settings}}
    model = Mega.from_config(config)
    model.load_state_dict(loaded.state_dict(), strict=False)
    return model


def _input_size(model: Mega | VQHPS) -> int:
    return model.backbone.input_size if isinstance(model, Mega) else model.input_size


def check_source(source: Source, bodies: SmplBodies | AnnyBodies) -> None:
    """Raise ValueError unless the dataset is of these bodies."""
    table = source.annotations
    if table.body != bodies.kind:
        raise UserError(f"the dataset in {source.folder} is of {table.body} bodies: set body.kind={table.body}")
    if isinstance(bodies, SmplBodies):
        bodies.check_genders(table.gender, f"the dataset in {source.folder}")


def with_landmarks_of(source: Source, bodies: AnnyBodies) -> Source:
    """The source with the 33 landmarks as its joints."""
    check_source(source, bodies)
    return replace(source, annotations=with_landmarks(source.annotations, bodies))


def held_out(source: Source, size: int, count: int) -> Batch:
    """The first `count` readable people of a source as one batch, as they are."""
    rows = np.linspace(0, len(source.annotations) - 1, min(count, len(source.annotations))).astype(int)
    items = [item for _, item in in_order(source, size, rows.tolist()) if item is not None]
    if not items:
        raise UserError(f"no picture in {source.folder} can be read: check the folder")
    return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}


def export(task: ImageTask, folder: Path, name: str, note: dict[str, Any]) -> Path:
    """Write body, tokenizer and model as a model folder, which `mega --model` takes."""
    fixed = task._fixed
    body, state = fixed.bodies.exported()
    kind = "mega" if isinstance(task.model, Mega) else "vqhps"
    config = {
        "format": checkpoint.FORMAT,
        "name": name,
        "body": body,
        "tokenizer": fixed.tokenizer.config,
        "model": {**task.model.config, "kind": kind},
        "provenance": [note],
    }
    state |= checkpoint.collect_state(None, fixed.tokenizer, task.model)
    return checkpoint.save(folder, config, state)


def run(source: str | Path, overrides: list[str], folder: Path, target: Path | None = None) -> None:
    """Train as a configuration says, in the run's folder, and export to `target` (FOLDER/final)."""
    config = load(ImageConfig, source, overrides)
    task = seeded(ImageTask, config)
    train(task, config.loop, folder)
    if is_first():
        _exported(task, config, target or folder / "final")


def _exported(task: ImageTask, config: ImageConfig, target: Path) -> None:
    scalars = task.eval().validate()
    note = {"stage": f"hmr {config.stage}", "loop": config.loop.model_dump(mode="json"), **scalars}
    export(task, target, "image", note)
    print(f"{target}: " + ("  ".join(f"{name} {value:.4g}" for name, value in scalars.items()) or "not validated"))


def main() -> None:
    cli = parser("Export the weights so far of a run of training from pictures as a model folder.", "image_anny")
    cli.add_argument("--export", type=Path, required=True, help="model folder to write")
    args = cli.parse_intermixed_args()
    config = load(ImageConfig, args.config, args.overrides)
    read_checkpoint(args.run)  # a wrong folder is noticed before the data are read
    task = ImageTask(config)
    start_from(task.model, args.run)
    _exported(task, config, args.export)


if __name__ == "__main__":
    command.run(main)
