"""A model folder: ``config.json`` beside ``model.safetensors``.

The configuration says which body, tokenizer and model the folder holds and where they came from; the tensors lie under
the prefixes ``body.``, ``tokenizer.`` and ``model.``. Any of the three parts may be missing (``null``): a folder that
holds only a tokenizer, or a model whose body its user has not yet brought, is a valid folder. Tensors may rest as
float16 on disk (``"precision"``); in memory they are float32, and loading then saving gives back the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import atomic_write

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PARTS = ("body", "tokenizer", "model")
BUNDLED = Path(__file__).resolve().parent / "assets" / "default"
PRECISIONS = ("float32", "float16")
_KEYS = {"format", "name", "body", "tokenizer", "model", "provenance", "precision"}


class CheckpointError(ValueError):
    """A model folder or a foreign file that cannot be used; the message says why and what to do next."""


@dataclass
class Loaded:
    """What a model folder holds. ``body``, ``tokenizer`` and ``model`` are modules in evaluation mode, or None."""

    folder: Path
    config: dict[str, Any]
    body: Any
    tokenizer: nn.Module | None
    model: nn.Module | None

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor under its prefixed name, as ``save`` takes them."""
        return collect_state(self.body, self.tokenizer, self.model)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write this folder's contents to another folder."""
        return save(folder, self.config, self.state())


def resolve(name: str | os.PathLike) -> Path:
    """The model folder that ``name`` means: "default" is the bundled one, anything else a path."""
    folder = BUNDLED if str(name) == "default" else Path(name).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no model folder {str(name)!r}: give a folder that `mega import` wrote, or default"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is not a model folder (no {CONFIG}): make one with `mega import FILE… -o FOLDER`"
        )
    return folder


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The checked configuration of a model folder (needs no torch)."""
    path = resolve(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): restore it or import the model again") from None
    check_config(config, str(path))
    return config


def check_config(config: Any, where: str = CONFIG) -> None:
    """Raise CheckpointError unless ``config`` is a model folder's configuration."""
    if not isinstance(config, dict):
        raise CheckpointError(f"{where} does not hold a JSON object: import the model again")
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{where} has format {config.get('format')!r}, this program reads format {FORMAT}: "
            "update the program or import the model again"
        )
    if missing := [key for key in ("name", "body", "tokenizer", "model", "provenance") if key not in config]:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}: import the model again")
    if unknown := sorted(set(config) - _KEYS):
        raise CheckpointError(f"{where} has unknown entries {', '.join(unknown)}: remove them or update the program")
    for part in PARTS:
        value = config[part]
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{where}: {part!r} must be an object or null")
        if part != "tokenizer" and value is not None and "kind" not in value:
            raise CheckpointError(f"{where}: {part!r} does not say its kind")
    if config.get("precision", "float32") not in PRECISIONS:
        raise CheckpointError(f"{where}: precision must be one of {', '.join(PRECISIONS)}")


def collect_state(body: Any = None, tokenizer: nn.Module | None = None, model: nn.Module | None = None) -> dict:
    """The tensors of the parts under their prefixes."""
    state = {}
    for part, module in (("body", body), ("tokenizer", tokenizer), ("model", model)):
        if module is not None:
            state.update({f"{part}.{name}": tensor for name, tensor in module.state_dict().items()})
    return state


def save(folder: str | os.PathLike, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Path:
    """Write ``config.json`` and ``model.safetensors``; returns the folder.

    config : as ``check_config`` asks; ``"precision": "float16"`` halves the file.
    state : tensors named ``body.*``, ``tokenizer.*``, ``model.*``; floats are stored in the configured precision.
    """
    import torch
    from safetensors.torch import save_file

    config = dict(config)
    check_config(config)
    precision = getattr(torch, config.get("precision", "float32"))
    tensors, seen = {}, set()
    for name, tensor in state.items():
        if name.partition(".")[0] not in PARTS:
            raise CheckpointError(f"{name!r} belongs to no part of a model folder: names start with {', '.join(PARTS)}")
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            finite = bool(torch.isfinite(tensor).all())
            tensor = tensor.to(precision)
            if finite and not torch.isfinite(tensor).all():
                raise CheckpointError(f"{name!r} has values too large for {precision}: save it as float32")
        tensor = tensor.contiguous()
        # safetensors refuses tensors that share memory: all but the first get their own.
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    # Written beside and then renamed, so that an interrupted save leaves the old folder whole.
    scratch = folder / f".{WEIGHTS}.{os.getpid()}"
    try:
        save_file(tensors, scratch, metadata={"format": "pt"})
        scratch.replace(folder / WEIGHTS)
    finally:
        scratch.unlink(missing_ok=True)
    atomic_write(folder / CONFIG, lambda stream: stream.write(text.encode()))
    return folder


def read_state(folder: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a model folder as they lie on disk."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = resolve(folder) / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy it beside its {CONFIG} or import the model again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy it again or import the model again") from None


def load(folder: str | os.PathLike = "default", device: str | torch.device = "cpu") -> Loaded:
    """Build the parts that a model folder configures and fill them; every tensor's name and shape must agree."""
    import torch

    folder = resolve(folder)
    config = read_config(folder)
    state = read_state(folder)
    if strangers := sorted(name for name in state if name.partition(".")[0] not in PARTS):
        raise CheckpointError(f"{folder / WEIGHTS} has tensors of no part: {_listing(strangers)}")
    modules = {}
    # Building a network draws its initial weights: keep the caller's random state out of it.
    with torch.random.fork_rng(devices=[]):
        for part in PARTS:
            modules[part] = build(part, config[part])
    for part, module in modules.items():
        values = {name[len(part) + 1 :]: value for name, value in state.items() if name.startswith(part + ".")}
        fill(module, values, f"{folder / WEIGHTS} ({part})")
        if module is not None:
            module.to(device).eval()
    return Loaded(folder, config, modules["body"], modules["tokenizer"], modules["model"])


def build(part: str, config: Mapping[str, Any] | None) -> Any:
    """The unfilled module of a part ("body", "tokenizer" or "model") from its configuration; None for null."""
    if config is None:
        return None
    options = dict(config)
    try:
        if part == "tokenizer":
            from .tokenizer.mesh_vqvae import MeshVQVAE

            return MeshVQVAE.from_config(options)
        kind = options.pop("kind")
        if (part, kind) == ("body", "anny"):
            from .body import Body

            return Body.bundled()
        if (part, kind) == ("body", "smpl"):
            from .smpl import SMPLBody

            return SMPLBody.from_config(options)
        if (part, kind) == ("model", "mega"):
            from .model.mega import Mega

            return Mega.from_config(options)
        if (part, kind) == ("model", "vqhps"):
            from .model.vqhps import VQHPS

            return VQHPS.from_config(options)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the configuration of the {part} is incomplete or unknown ({error})") from error
    raise CheckpointError(f"unknown kind of {part}: {kind!r}; update the program")


def fill(module: nn.Module | None, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy ``state`` into ``module``; names and shapes must match exactly, floats are widened to the module's."""
    compare({} if module is None else module.state_dict(), state, where)
    if module is not None:
        module.load_state_dict(state, strict=True)


def compare(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise CheckpointError unless ``state`` has exactly the names and shapes of ``expected``."""
    if missing := sorted(set(expected) - set(state)):
        raise CheckpointError(f"{where} lacks {_listing(missing)}")
    if leftover := sorted(set(state) - set(expected)):
        raise CheckpointError(f"{where} has tensors that the model does not know: {_listing(leftover)}")
    for name, target in expected.items():
        if tuple(target.shape) != tuple(state[name].shape):
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(state[name].shape)}, the configuration says {tuple(target.shape)}"
            )


def _listing(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
