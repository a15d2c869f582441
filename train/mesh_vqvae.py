"""Stage 1: train the Mesh-VQ-VAE on bodies posed on the fly.

    python -m train.mesh_vqvae tokenizer mocap=FOLDER --run runs/tokenizer
    python -m train.mesh_vqvae tokenizer --run runs/tokenizer --export FOLDER   # the weights so far, as a model folder

Only the convolved subset of the body is posed. Its points count in the loss by the share of the full mesh that follows
them through the lift, so that the loss is (nearly) the mean vertex distance of the full mesh.

The first steps train a plain autoencoder. Then latents are turned to principal components
(`MeshVQVAE.fit_latents`), the codes are placed by k-means, and training goes on through the quantiser. Codes may be
placed again as the encoder moves on; in the end it stands still, and the decoder learns what the codes mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mega_backend import checkpoint
from mega_backend.body import Body
from mega_backend.tokenizer.hierarchy import Hierarchy, fit_lift
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train import command, figures
from train import config as configuration
from train.config import Config, UserError
from train.data.bodies import BodySampler
from train.loop import Batch, LoopConfig, Task, is_first, read_checkpoint, step_generator, train

POSED_AT_ONCE = 32


class LayerConfig(Config):
    """One layer of the network."""

    level: int = Field(ge=0, description="resolution that comes out: an index into `sizes`")
    channels: int = Field(gt=0)
    reach: int = Field(gt=0, description="same level: neighbours up to so many steps away; else: nearest coarse points")
    bases: int = Field(9, ge=0)
    residual_rate: float = Field(0.0, ge=0, le=1)


class TokenizerConfig(Config):
    """The bundled tokenizer and its training."""

    loop: LoopConfig
    mocap: Path | None = Field(None, description="folder of motion capture (train/, val/, test/ with .npz recordings)")
    sizes: tuple[int, ...] = Field(description="points of each level, fine to coarse")
    stretch: dict[str, float] = Field({}, description="per body part: how much closer points lie than elsewhere (1)")
    tokens: dict[str, int] = Field({}, description="tokens of each body part; none: as evenly as the points")
    lift_neighbours: int = Field(16, gt=1)
    lift_bodies: int = Field(300, gt=0)
    lift_ridge: float = Field(1e-7, gt=0, description="metres²")
    encoder: tuple[LayerConfig, ...]
    decoder: tuple[LayerConfig, ...]
    codes: int = Field(512, gt=0)
    quantisers: int = Field(1, ge=0)
    shared_codebook: bool = False
    codebook_per_place: bool = False
    decay: float = 0.99
    commitment: float = 0.25
    revive_below: float = 0.03
    components_of: Literal["token", "part"] = "part"
    rotate_gradient: bool = Field(False, description="through the quantiser by rotation, not straight through")
    start: Path | None = Field(None, description="model folder whose network this one begins as, tokens made anew")
    batch: int = Field(32, gt=0, description="bodies per shard")
    quantise_from: int = Field(1000, ge=0, description="steps before which nothing is quantised")
    place_again: tuple[int, ...] = Field((), description="steps at which k-means places the codes anew")
    freeze_encoder_from: int | None = Field(None, ge=0, description="step from which only the decoder learns")
    mixed: float = Field(0.5, ge=0, le=1, description="share of bodies decoded with parts taken from another body")
    quantiser_weight: float = Field(0.02, description="of the quantiser's loss beside the distance in metres")
    statistics_bodies: int = Field(2048, gt=0, description="for means, whitening and k-means")


def build(config: TokenizerConfig, body: Body, sampler: BodySampler) -> MeshVQVAE:
    """The network that the configuration describes, over a hierarchy of the body, with its lift fitted."""
    if unknown := set(config.stretch) - set(body.part_names):
        raise UserError(f"stretch names no parts of the body: {', '.join(unknown)}; use {', '.join(body.part_names)}.")
    stretch = np.array([config.stretch.get(name, 1.0) for name in body.part_names])[body.vertex_part.cpu().numpy()]
    if unknown := set(config.tokens) - set(body.part_names):
        raise UserError(f"tokens names no parts of the body: {', '.join(unknown)}; use {', '.join(body.part_names)}.")
    coarsest = {body.part_names.index(name): count for name, count in config.tokens.items()} or None
    hierarchy = Hierarchy.of_mesh(
        body.mean.cpu().numpy(),
        body.quads.cpu().numpy(),
        config.sizes,
        stretch,
        body.vertex_part.cpu().numpy(),
        coarsest,
    )
    layers, connections = _layers(config, hierarchy)
    names = (
        "lift_neighbours",
        "codes",
        "quantisers",
        "shared_codebook",
        "codebook_per_place",
        "decay",
        "commitment",
        "revive_below",
        "rotate_gradient",
    )
    network = {
        "vertices": body.vertex_count,
        "encoder": layers[: len(config.encoder)],
        "decoder": layers[len(config.encoder) :],
        "normalise": True,
        "components_of": config.components_of,
        "part_names": list(body.part_names),
        **{name: getattr(config, name) for name in names},
    }
    model = MeshVQVAE.build(network, connections, config.loop.seed)
    people = sampler.sample(config.lift_bodies, step_generator(config.loop.seed, 0, 2**16))
    posed = body.canonical_skin(people["rotations"], people["shape"])
    ids, weights = fit_lift(hierarchy, posed.cpu().numpy(), config.lift_neighbours, config.lift_ridge)
    points = torch.as_tensor(hierarchy.levels[0].copy())
    model.set_lift(points, torch.as_tensor(ids), torch.as_tensor(weights))
    model.token_part.copy_(body.vertex_part.cpu()[hierarchy.levels[-1].copy()])
    return model


def _layers(config: TokenizerConfig, hierarchy: Hierarchy) -> tuple[list[dict[str, int | float]], list[np.ndarray]]:
    """What `MeshVQVAE` wants to know of each layer of encoder and decoder, and whom its points look at (P, 1 + 2 M)."""
    layers, connections, level = [], [], 0
    for layer in (*config.encoder, *config.decoder):
        if layer.level == level:
            matrix = hierarchy.convolution(level, layer.reach)
        elif layer.level > level:
            matrix = hierarchy.pooling(level, layer.level, layer.reach)[0]
        else:
            matrix = hierarchy.pooling(layer.level, level, layer.reach)[1]
        level = layer.level
        connections.append(matrix)
        layers.append(
            {
                "points": len(matrix),
                "neighbours": (matrix.shape[1] - 1) // 2,
                "channels": layer.channels,
                "bases": layer.bases,
                "residual_rate": layer.residual_rate,
            }
        )
    return layers, connections


def point_mass(model: MeshVQVAE, smallest: float = 0.1) -> Tensor:
    """Share of the full mesh ``(P)`` that follows each point; no point counts less than ``smallest`` of the mean."""
    mass = torch.zeros(len(model.points)).index_add_(
        0, model.lift_points.long().flatten(), model.lift_weights.flatten().abs()
    )
    mass = mass.clamp(min=smallest * float(mass.mean()))
    return mass / mass.sum()


class Tokenizer(Task):
    """The Mesh-VQ-VAE with its data and loss."""

    def __init__(self, config: TokenizerConfig, body: Body, sampler: Callable[[Body, str], BodySampler] | None = None):
        """``sampler(body, split)`` gives other bodies than the motion capture's, for a trial without any."""
        super().__init__()
        if sampler is None:
            if config.mocap is None:
                raise UserError("No motion capture: add mocap=FOLDER, the folder that holds train/, val/ and test/.")
            sampler = functools.partial(BodySampler, folder=config.mocap)
        self.settings = config
        self.model = build(config, body, sampler(body, "train"))
        self._posing = body.subset(self.model.points.long())
        self._sampler = sampler(self._posing, "train")
        held_out = sampler(body, "val").sample(256, step_generator(config.loop.seed, 1, 2**16))
        self._held_out = body.canonical_skin(held_out["rotations"], held_out["shape"])
        self._faces = body.faces.cpu().numpy()
        self._blocks: dict[tuple[int, int], Tensor] = {}
        self.register_buffer("mass", point_mass(self.model), persistent=False)
        # The last layer's lists are sorted by distance: the tokens nearest to every point.
        self._nearest_tokens = self.model.layers[-1].convolution.neighbours[:, :2].long()
        self.register_buffer("quantising", torch.tensor(False))
        self.model.fit_points(self._points(config.statistics_bodies, step_generator(config.loop.seed, 2, 2**16)))
        if config.start:
            self._begin_as(checkpoint.load(config.start).tokenizer)

    def _begin_as(self, other: MeshVQVAE | None) -> None:
        """Take another model's network and point statistics; latents and codebook are then measured anew."""
        if other is None:
            raise UserError(f"{self.settings.start} holds no tokenizer to start from.")
        own = self.model.state_dict()
        kept = {k for k in own if k.startswith(("latent_", "quantiser."))}
        found = {k: v for k, v in other.state_dict().items() if not k.startswith(("latent_", "quantiser."))}
        if wrong := sorted(k for k in own.keys() - kept if k not in found or found[k].shape != own[k].shape):
            raise UserError(f"{self.settings.start} is another network ({wrong[0]} differs): use its configuration.")
        self.model.load_state_dict(found, strict=False)

    def _points(self, count: int, generator: torch.Generator) -> Tensor:
        people = self._sampler.sample(count, generator)
        return self._posing.canonical_skin(people["rotations"], people["shape"])

    def shard(self, step: int, shard: int, generator: torch.Generator) -> Batch:
        """Bodies are posed for POSED_AT_ONCE steps at a time: in bulk they cost a tenth."""
        block, place = divmod(step, POSED_AT_ONCE)
        if (block, shard) not in self._blocks:
            self._blocks = {key: value for key, value in self._blocks.items() if key[0] == block}
            bulk = step_generator(self.settings.loop.seed + 1, block, shard)
            self._blocks[block, shard] = self._points(POSED_AT_ONCE * self.settings.batch, bulk)
        points = self._blocks[block, shard][place * self.settings.batch :][: self.settings.batch]
        return {"points": points, "step": torch.tensor([step])}

    def begin_step(self, step: int) -> None:
        if step in self.settings.place_again or (not self.quantising and step >= self.settings.quantise_from):
            self._place_codes(step)

    @torch.no_grad()
    def _place_codes(self, step: int) -> None:
        """K-means over the latents of fresh bodies; the first time they are turned to their components before."""
        with torch.autocast(self.mass.device.type, enabled=False):
            points = self._points(
                self.settings.statistics_bodies, step_generator(self.settings.loop.seed, step, 2**16 + 1)
            )
            latent = torch.cat([self.model.encode_points(part) for part in points.to(self.mass.device).split(256)])
            rest = latent if self.quantising else self.model.fit_latents(latent, self.mass)
            if not self.settings.codebook_per_place:
                rest = rest.flatten(0, 1)
            for quantiser in self.model.quantiser:
                quantiser.fit(rest[:: max(1, len(rest) // (24 * self.settings.codes))])
                rest = rest - quantiser.lookup(quantiser.nearest(rest))
        self.quantising.fill_(True)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        points, model, step = batch["points"], self.model, int(batch["step"][0])
        frozen = self.settings.freeze_encoder_from
        with torch.set_grad_enabled(torch.is_grad_enabled() and (frozen is None or step < frozen)):
            latent = model.encode_points(points).float()
        scalars, quantiser_loss = {}, 0.0
        if self.quantising and self.settings.quantisers:
            with torch.autocast(points.device.type, enabled=False):
                tokens, latent, quantiser_loss = model.quantise(latent)
            scalars = {"quantiser": quantiser_loss.detach(), "codes": tokens.unique().numel()}
        latent, target, weight = self._mix(latent, points)
        distance = (model.decode_points(latent).float() - target).norm(dim=-1)
        whole = len(points) - round(self.settings.mixed * len(points))
        scalars = {"distance_mm": 1000 * (distance[:whole].detach() @ self.mass).mean(), **scalars}
        loss = (distance * weight).sum() / weight.sum() + self.settings.quantiser_weight * quantiser_loss
        return loss, scalars

    def _mix(self, latent: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents with the parts of some bodies exchanged, the points ``(B, P, 3)`` they mean, weights ``(B, P)``.

        What a token says is thus said about its own part only, and the part can be kept while others change. Points
        between tokens of different bodies mean nothing and do not count.
        """
        count = round(self.settings.mixed * len(points))
        weight = self.mass.expand(len(points), -1)
        if count < 2:
            return latent, points, weight
        own = torch.rand(count, int(self.model.token_part.max()) + 1) < 0.5
        own = own.to(points.device)[:, self.model.token_part.long()]
        near, second = self._nearest_tokens.unbind(1)
        mine, agree = own[:, near], own[:, near] == own[:, second]
        z, x = latent[-count:], points[-count:]
        latent = torch.cat((latent[:-count], torch.where(own[..., None], z, z.roll(1, 0))))
        points = torch.cat((points[:-count], torch.where(mine[..., None], x, x.roll(1, 0))))
        return latent, points, torch.cat((weight[:-count], weight[-count:] * agree))

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out bodies (left) and what comes out again (right)."""
        bodies = self._held_out[:3].to(self.mass.device)
        latent = self.model.latent(bodies)
        if self.quantising and self.settings.quantisers:
            latent = self.model.quantise(latent)[1]
        columns = [vertices.cpu().numpy() for vertices in (bodies, self.model.decode_latent(latent))]
        return {"reconstructed": figures.compare(columns, self._faces)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        total, tokens = 0.0, []
        for vertices in self._held_out.to(self.mass.device).split(64):
            latent = self.model.latent(vertices)
            if self.quantising and self.settings.quantisers:
                token, latent, _ = self.model.quantise(latent)
                tokens.append(token)
            total += float((self.model.decode_latent(latent) - vertices).norm(dim=-1).mean(1).sum())
        scalars = {"vertex_error_mm": 1000 * total / len(self._held_out)}
        if tokens:
            scalars["codes"] = torch.cat(tokens).unique().numel()
        return scalars


def export(task: Tokenizer, folder: Path, note: dict[str, Any]) -> Path:
    """Write the tokenizer as a model folder."""
    config = {
        "format": checkpoint.FORMAT,
        "name": "anny-tokenizer",
        "body": {"kind": "anny"},
        "tokenizer": task.model.config,
        "model": None,
        "provenance": [note],
    }
    state = {f"tokenizer.{name}": value for name, value in task.model.state_dict().items()}
    return checkpoint.save(folder, config, state)


def main() -> None:
    cli = configuration.parser(__doc__.splitlines()[0], default="tokenizer")
    cli.add_argument("--export", type=Path, help="write the averaged weights so far to this folder, train nothing")
    arguments = cli.parse_intermixed_args()
    if configuration.peek(arguments.config, arguments.overrides, "body"):
        from train import smpl_tokenizer

        smpl_tokenizer.run(arguments)
        return
    config = configuration.load(TokenizerConfig, arguments.config, arguments.overrides)
    task = Tokenizer(config, Body.bundled())
    if arguments.export:
        state = read_checkpoint(arguments.run)
        task.load_state_dict(state["task"])
        task.load_state_dict((state["ema"] or {"average": {}})["average"], strict=False)
        done = state["step"]
    else:
        train(task, config.loop, arguments.run)
        done = config.loop.steps
        if not is_first():
            return
    scalars = task.eval().validate()
    note = {
        "stage": "mesh_vqvae",
        "config": config.model_dump(mode="json", exclude={"mocap"}),
        "steps": done,
        **scalars,
    }
    target = arguments.export or arguments.run / "final"
    print(f"{export(task, target, note)}: " + "  ".join(f"{k} {v:.4g}" for k, v in scalars.items()))


if __name__ == "__main__":
    command.run(main)
