"""Stage 1 on SMPL: the published Mesh-VQ-VAE over all vertices, and the tokens that stage 2 learns from.

    python -m train.mesh_vqvae mesh_vqvae_smpl --run runs/smpl motions=AMASS connections=FOLDER body.models.neutral=…
    python -m train.smpl_tokenizer runs/smpl/final --motions AMASS --neutral FILE … -o tokens      (tokens for stage 2)

Motions are AMASS's or BEDLAM's npz files, or our own motion capture format; the connection matrices are those of the
mesh autoencoder of Zhou et al. 2020. Bodies are posed on the device, in the step that learns from them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from mega_backend import checkpoint, smpl
from mega_backend.foreign import read_npy
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE, layer_names, published_config
from mega_backend.tokenizer.parts import measure_token_parts
from train import command, figures
from train import config as configuration
from train.config import Config, UserError
from train.data import motions
from train.data.motions import SmplSampler
from train.data.smpl import GENDERS, SmplBodies
from train.images import BodyConfig
from train.loop import Batch, LoopConfig, Task, is_first, train
from train.metrics import distances
from train.weights import start_from


class SmplTokenizerConfig(Config):
    """The published tokenizer and its training."""

    loop: LoopConfig
    body: BodyConfig
    motions: Path = Field(description="folder of AMASS or BEDLAM npz files, or of our own motion capture format")
    connections: Path = Field(description="folder of the published _pool*.npy and _unpool*.npy")
    held_out_every: int = Field(20, gt=1, description="each n-th file validates")
    levels: int = Field(7, gt=0, description="layers of the encoder; 7 end at 54 tokens")
    codes: int = Field(512, gt=1)
    batch: int = Field(16, gt=0, description="bodies per shard")
    quantiser_weight: float = Field(1.0, ge=0, description="of the quantiser's loss beside the distance in metres")
    validation_bodies: int = Field(256, gt=0)
    start: Path | None = Field(None, description="run or model folder whose weights training begins with")


class SmplTokenizer(Task):
    """The Mesh-VQ-VAE of VQ-HPS and MEGA with its data and loss."""

    def __init__(self, config: SmplTokenizerConfig) -> None:
        super().__init__()
        self.settings = config
        names = layer_names(config.levels)
        if missing := [f"{name}.npy" for name in names if not (config.connections / f"{name}.npy").is_file()]:
            raise UserError(
                f"{config.connections} lacks {', '.join(missing)}: give the folder of the connection matrices"
            )
        matrices = {name: read_npy(config.connections / f"{name}.npy") for name in names}
        network = published_config(matrices, config.levels, config.codes)
        self.model = MeshVQVAE.build(network, [matrices[name] for name in names], config.loop.seed)
        bodies = config.body.load()
        if bodies.kind != "smpl" or bodies.vertex_count != network["vertices"]:
            raise UserError(
                f"the connections are for {network['vertices']} vertices, the body has {bodies.vertex_count}: "
                "give the matrices of this body"
            )
        kept, held_out, skipped = motions.read_split(config.motions, config.held_out_every)
        for message in skipped:
            tqdm.write(f"skipped: {message}")
        # Outside the module: bodies are not trained, and no part of a run's checkpoints.
        self._samplers = [SmplSampler(bodies, kept), SmplSampler(bodies, held_out)]
        self._bodies = [bodies]
        if config.start:
            start_from(self.model, config.start, part="tokenizer")

    @property
    def bodies(self) -> SmplBodies:
        return self._bodies[0]

    def shard(self, step: int, shard: int, generator: torch.Generator) -> Batch:
        return self._samplers[0].sample(self.settings.batch, generator)

    def _meshes(self, batch: Batch) -> Tensor:
        device = self.model.codebook.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            bodies = self.bodies.to(device)
            return bodies.canonical(*(batch[name].to(device) for name in ("pose", "shape", "gender")))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        meshes = self._meshes(batch)
        latent = self.model.latent(meshes).float()
        tokens, quantised, quantiser_loss = self.model.quantise(latent)
        distance = (self.model.decode_latent(quantised).float() - meshes).norm(dim=-1).mean()
        scalars = {
            "distance_mm": 1000 * distance.detach(),
            "quantiser": quantiser_loss.detach(),
            "codes": tokens.unique().numel(),
        }
        return distance + self.settings.quantiser_weight * quantiser_loss, scalars

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        sample = self._samplers[1].sample(self.settings.validation_bodies, torch.Generator().manual_seed(0))
        errors, tokens = [], []
        for start in range(0, self.settings.validation_bodies, self.settings.batch):
            meshes = self._meshes({name: value[start : start + self.settings.batch] for name, value in sample.items()})
            tokens.append(self.model.encode(meshes))
            errors.append(distances(self.model.decode(tokens[-1]), meshes))
        return {"vertex_error_mm": float(torch.cat(errors).mean()), "codes": torch.cat(tokens).unique().numel()}

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out bodies (left) and what their tokens decode to (right)."""
        meshes = self._meshes(self._samplers[1].sample(4, torch.Generator().manual_seed(0)))
        decoded = self.model.decode(self.model.encode(meshes))
        columns = [meshes.cpu().numpy(), decoded.cpu().numpy()]
        return {"reconstructed": figures.compare(columns, self.bodies.faces.cpu().numpy())}


def export(task: SmplTokenizer, folder: Path, note: dict[str, Any]) -> Path:
    """Write body and tokenizer as a model folder."""
    task.eval()
    body, state = task.bodies.exported()
    parts = measure_token_parts(task.model, state["body.vertex_part"], len(smpl.PARTS))
    task.model.token_part.copy_(parts)
    config = {
        "format": checkpoint.FORMAT,
        "name": "smpl-tokenizer",
        "body": body,
        "tokenizer": task.model.config,
        "model": None,
        "provenance": [note],
    }
    return checkpoint.save(folder, config, {**state, **checkpoint.collect_state(None, task.model)})


def run(arguments: argparse.Namespace) -> None:
    """Train as `python -m train.mesh_vqvae` was told, and export; with --export only the latter."""
    config = configuration.load(SmplTokenizerConfig, arguments.config, arguments.overrides)
    task = SmplTokenizer(config)
    if arguments.export:
        start_from(task.model, arguments.run)
    else:
        train(task, config.loop, arguments.run)
        if not is_first():
            return
    scalars = task.eval().validate()
    note = {"stage": "mesh_vqvae", "config": config.model_dump(mode="json", exclude={"motions", "body"}), **scalars}
    target = arguments.export or arguments.run / "final"
    print(f"{export(task, target, note)}: " + "  ".join(f"{k} {v:.4g}" for k, v in scalars.items()))


@torch.no_grad()
def encode(tokenizer: MeshVQVAE, sampler: SmplSampler, batch: int = 64) -> Tensor:
    """Tokens (N, T) int16 of all bodies of a sampler's motions, in order."""
    every, parts = sampler.motions, []
    for start in tqdm(range(0, len(every), batch), desc="bodies"):
        rows = slice(start, start + batch)
        part = {"pose": every.pose[rows], "shape": every.betas[rows], "gender": every.gender[rows]}
        parts.append(tokenizer.encode(sampler.canonical(part)).to(torch.int16).cpu())
    return torch.cat(parts)


def main(arguments: list[str] | None = None) -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("tokenizer", type=Path, help="model folder that holds the tokenizer")
    cli.add_argument("--motions", type=Path, required=True)
    for gender in GENDERS:
        cli.add_argument(f"--{gender}", type=Path, help=f"SMPL file of {gender} bodies")
    cli.add_argument("--held-out-every", type=int, default=20)
    cli.add_argument("--device", default="cpu")
    cli.add_argument("-o", "--output", type=Path, required=True, help="folder for train.pt and val.pt")
    options = cli.parse_args(arguments)
    bodies = SmplBodies({g: getattr(options, g) for g in GENDERS if getattr(options, g)}).to(options.device)
    tokenizer = checkpoint.load(options.tokenizer, options.device).tokenizer
    if tokenizer is None or tokenizer.config["vertices"] != bodies.vertex_count:
        raise UserError(f"{options.tokenizer} holds no tokenizer of these bodies: give the folder of stage 1's run")
    kept, held_out, skipped = motions.read_split(options.motions, options.held_out_every)
    for message in skipped:
        tqdm.write(f"skipped: {message}")
    options.output.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", kept), ("val", held_out)):
        path = options.output / f"{name}.pt"
        torch.save({"tokens": encode(tokenizer, SmplSampler(bodies, part))}, path)
        print(f"{path}: {len(part)} bodies")


if __name__ == "__main__":
    command.run(main)
