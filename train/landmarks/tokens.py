"""The tokenizer whose tokens a bank holds, and what its codes mean."""

from __future__ import annotations

from torch import Tensor

from mega_backend import checkpoint
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train.config import UserError

from .config import HmrConfig


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
