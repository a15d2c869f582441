"""What a stage begins with: weights of other runs and models, and the tokenizer."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mega_backend import checkpoint
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train.config import UserError
from train.loop import read_checkpoint

from .config import HmrConfig

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
