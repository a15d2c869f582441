"""What training begins with: weights of other runs, of model folders, and of files that hold a backbone alone."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from mega_backend import checkpoint
from mega_backend.model.mega import Mega
from mega_backend.model.vqhps import VQHPS
from train.config import UserError
from train.loop import read_checkpoint

_IN_A_MODEL = {"regressor.": "prior.", "head.": "latent_head.", "model.": ""}
"""Where the parts of the stages' tasks are in a finished model."""


def averaged_state(run: Path, prefix: str) -> dict[str, Tensor]:
    """State of a part of a run's task under its own names, averaged weights in the place of the last ones.

    run: a run's folder, or a model folder, to go on from finished weights.
    """
    if (run / "config.json").is_file():
        model, start = checkpoint.load(run).model, _IN_A_MODEL[prefix]
        if model is None:
            raise UserError(f"{run} holds no model to begin with: give the folder of one, or of a run")
        return {name[len(start) :]: value for name, value in model.state_dict().items() if name.startswith(start)}
    saved = read_checkpoint(run)
    state = dict(saved["task"])
    if saved["ema"]:
        state |= saved["ema"]["average"]
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def start_from(model: nn.Module, folder: Path, part: str = "model") -> None:
    """Take what fits, by name and shape, from a run of any stage or from a part of a model folder.

    Raises:
        ValueError: nothing fits.
    """
    if (folder / "checkpoint.pt").is_file():
        state = averaged_state(folder, "model.")
    else:
        loaded = getattr(checkpoint.load(folder), part)
        state = {} if loaded is None else loaded.state_dict()
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise UserError(f"nothing in {folder} fits this model: give a run or a model folder of the same sizes")
    model.load_state_dict(fitting, strict=False)
    print(f"{folder}: {len(fitting)} of {len(own)} tensors taken")


def load_backbone(model: Mega | VQHPS, path: Path) -> None:
    """Fill the backbone(s) from a file of their own; names may carry prefixes, torchvision's ResNet names are known.

    Raises:
        ValueError: nothing in the file fits.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        from mega_backend.foreign import read_torch

        state = read_torch(path)
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state.get(key), dict) else state
    for backbone in (m for name, m in model.named_children() if name.startswith("backbone")):
        own = backbone.state_dict()
        fitting = {}
        for name, value in state.items():
            for renamed in _backbone_names(name):
                if renamed in own and own[renamed].shape == value.shape:
                    fitting[renamed] = value
        if len(fitting) < len(own) / 2:
            raise UserError(f"{path} fits {len(fitting)} of {len(own)} tensors of the backbone: give its weights")
        backbone.load_state_dict(fitting, strict=False)
        print(f"{path.name}: {len(fitting)} of {len(own)} tensors of the backbone")


def _backbone_names(name: str) -> list[str]:
    """What a name in a foreign file may be called here."""
    for prefix in ("module.", "backbone."):
        name = name.removeprefix(prefix)
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    head, dot, rest = name.partition(".")
    return [name, places[head] + dot + rest] if head in places else [name]
