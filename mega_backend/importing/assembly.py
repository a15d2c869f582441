"""Recognised inputs → a model folder whose parts belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mega_backend import checkpoint, published, smpl
from mega_backend.checkpoint import CheckpointError
from mega_backend.tokenizer.parts import measure_token_parts

from . import provenance
from .inputs import H36M_JOINTS, Input, recognise
from .lacking import CONNECTIONS_PAGE, H36M_PAGE, SMPL_PAGE, missing
from .words import model_text, tokenizer_text


@dataclass
class Imported:
    """What an import did: the folder, a line per input, and what the folder still lacks."""

    folder: Path
    recognised: list[str]
    missing: list[str]
    notes: list[str] = field(default_factory=list)


def import_files(
    files: Sequence[str | Path],
    output: str | Path,
    name: str | None = None,
    heads: int | None = None,
    backbone_heads: int | None = None,
    residual_rate: float | None = None,
    precision: str | None = None,
) -> Imported:
    """Import files into a model folder, adding to one that exists; returns what was found and what is missing.

    name : of the model; by default that of the checkpoint's file
    heads, backbone_heads : attention heads, which do not show in the tensors (4 in MEGA, 8 in VQ-HPS, 16 in ViT-H)
    residual_rate : of layers of the mesh autoencoder that mix convolution and pooling
    precision : "float16" halves the folder's size, "float32" keeps every bit (the default)

    Raises CheckpointError with a sentence where anything does not fit; the folder is then as it was.
    """
    output = Path(output)
    inputs = [found for file in files for found in recognise(Path(file).expanduser())]
    by_role = _by_role(inputs)
    config, state = _existing(output)
    provenance.forget(config, by_role)
    _add_body(config, state, by_role)
    _add_tokenizer(config, state, by_role, residual_rate)
    _add_model(config, state, by_role, heads, backbone_heads)
    notes = _add_regressors(config, state, by_role)
    _add_initial_pose(config, state, by_role)
    _check_agreement(config)
    _measure_parts(config, state)
    if name or not (output / checkpoint.CONFIG).is_file():
        config["name"] = name or _name(by_role)
    if precision:
        config["precision"] = precision
    config["provenance"] += [provenance.entry_of(found) for found in inputs]
    checkpoint.save(output, config, state)
    lines = [f"{found.path.name}: {found.text}" for found in inputs]
    return Imported(output, lines, missing(config), notes)


def _by_role(inputs: Sequence[Input]) -> dict[str, Input]:
    """The inputs by their roles, MEGA and VQ-HPS both as "model". Raises CheckpointError for two of one role."""
    by_role: dict[str, Input] = {}
    for found in inputs:
        role = "model" if found.role in ("mega", "vqhps") else found.role
        if role in by_role:
            both = f"{by_role[role].path.name} and {found.path.name}"
            raise CheckpointError(f"{both} are both a {role}: import them into folders of their own")
        by_role[role] = found
    return by_role


def _existing(output: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of the folder to add to; empty ones for a new folder."""
    if (output / checkpoint.CONFIG).is_file():
        config = checkpoint.read_config(output)
        # Copies: the file that the tensors lie in is about to be replaced.
        state = {
            name: value.float() if value.is_floating_point() else value
            for name, value in checkpoint.read_state(output).items()
        }
        return config, state
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output} is a file: give the name of a folder with -o")
    if output.is_dir() and any(output.iterdir()):
        raise CheckpointError(f"{output} is a folder of other things: give the name of a new folder with -o")
    return {"format": 1, "name": "", "body": None, "tokenizer": None, "model": None, "provenance": []}, {}


def _replace(state: dict[str, Tensor], part: str, tensors: Mapping[str, Tensor]) -> None:
    for name in [name for name in state if name.startswith(f"{part}.")]:
        del state[name]
    state.update({f"{part}.{name}": tensor for name, tensor in tensors.items()})


def _add_body(config: dict[str, Any], state: dict[str, Tensor], by_role: Mapping[str, Input]) -> None:
    if "body" not in by_role:
        return
    body_config, body_state = by_role["body"].content
    if config["body"] and config["body"].get("h36m") and "h36m" not in by_role:
        # A regressor that was imported earlier stays, if it fits the new body.
        kept = state.get("body.h36m_regressor")
        if kept is not None and kept.shape[1] == body_config["vertices"]:
            body_config, body_state = {**body_config, "h36m": True}, {**body_state, "h36m_regressor": kept}
    config["body"] = body_config
    _replace(state, "body", body_state)


def _add_tokenizer(
    config: dict[str, Any], state: dict[str, Tensor], by_role: Mapping[str, Input], residual_rate: float | None
) -> None:
    if "tokenizer" not in by_role:
        if "connections" in by_role:
            raise CheckpointError(
                "connection matrices belong to a Mesh-VQ-VAE checkpoint: give mesh_vqvae_54 with them"
            )
        return
    found = by_role["tokenizer"]
    if "connections" not in by_role:
        raise CheckpointError(
            f"{found.path.name} needs its connection matrices: give the folder with _pool0.npy … too "
            f"({CONNECTIONS_PAGE})"
        )
    matrices = by_role["connections"].content
    settings, tensors = published.tokenizer(found.content, matrices, found.path.name, residual_rate)
    config["tokenizer"] = settings
    _replace(state, "tokenizer", tensors)
    found.text += f", {tokenizer_text(settings)}"


def _add_model(
    config: dict[str, Any],
    state: dict[str, Tensor],
    by_role: Mapping[str, Input],
    heads: int | None,
    backbone_heads: int | None,
) -> None:
    if "model" not in by_role:
        return
    found = by_role["model"]
    reader = {"mega": published.mega, "vqhps": published.vqhps}[found.role]
    settings, tensors = reader(found.content, found.path.name, heads, backbone_heads)
    if found.role == "vqhps" and config["model"]:  # an initial pose that was imported earlier stays
        settings["initial_pose"] = config["model"].get("initial_pose")
    config["model"] = settings
    _replace(state, "model", tensors)
    found.text += f", {model_text(settings)}"


def _add_regressors(config: dict[str, Any], state: dict[str, Tensor], by_role: Mapping[str, Input]) -> list[str]:
    """Joint regressors go with the body; returns what there is to say about those that add nothing."""
    notes = []
    vertices = (config["body"] or config["tokenizer"] or {}).get("vertices")
    for role in ("h36m", "joints"):
        if role not in by_role:
            continue
        found = by_role[role]
        if vertices is not None and found.content.shape[1] != vertices:
            raise CheckpointError(
                f"{found.path.name} is for {found.content.shape[1]} vertices, this model has {vertices}"
            )
        if config["body"] is None or config["body"]["kind"] != "smpl":
            starts = role == "h36m" and "initial pose" in by_role
            if not starts:
                raise CheckpointError(f"{found.path.name} belongs to a body: give the SMPL file too ({SMPL_PAGE})")
        elif role == "h36m":
            config["body"]["h36m"] = True
            state["body.h36m_regressor"] = torch.from_numpy(found.content)
        else:
            notes.append(f"{found.path.name} adds nothing: the SMPL file has these joints itself")
    return notes


def _add_initial_pose(config: dict[str, Any], state: Mapping[str, Tensor], by_role: Mapping[str, Input]) -> None:
    """VQ-HPS starts from 17 joints: those of tpose.npy, else of SMPL's template, by Human3.6M's regressor."""
    is_vqhps = config["model"] is not None and config["model"]["kind"] == "vqhps"
    given = by_role.get("initial pose")
    if given is not None and not is_vqhps:
        raise CheckpointError(f"{given.path.name} is VQ-HPS's initial pose: give a VQ-HPS checkpoint with it")
    if not is_vqhps or (given is None and config["model"]["initial_pose"] is not None):
        return
    regressor = state.get("body.h36m_regressor")
    if regressor is None and "h36m" in by_role:
        regressor = torch.from_numpy(by_role["h36m"].content)
    mesh = state.get("body.template") if given is None else torch.from_numpy(given.content)
    if given is not None and len(mesh) == H36M_JOINTS:
        joints = mesh
    elif regressor is None:
        if given is None:
            return
        raise CheckpointError(
            f"{given.path.name} is a mesh: its joints need J_regressor_h36m.npy; give that too ({H36M_PAGE})"
        )
    elif mesh is None:
        return
    elif len(mesh) != regressor.shape[1]:
        raise CheckpointError(f"{given.path.name} has {len(mesh)} vertices, the regressor is for {regressor.shape[1]}")
    else:
        joints = regressor.float() @ mesh.float()
    config["model"]["initial_pose"] = [float(value) for value in joints.flatten()]


def _check_agreement(config: Mapping[str, Any]) -> None:
    """Body, tokenizer and model must speak of the same mesh and the same tokens."""
    body, tokenizer, model = config["body"], config["tokenizer"], config["model"]
    if body and body["kind"] == "smpl" and tokenizer and body["vertices"] != tokenizer["vertices"]:
        raise CheckpointError(
            f"the body has {body['vertices']} vertices, the Mesh-VQ-VAE {tokenizer['vertices']}: "
            "they do not belong together"
        )
    if tokenizer and model:
        if tokenizer["quantisers"] != 1:
            raise CheckpointError("MEGA and VQ-HPS need a Mesh-VQ-VAE with one quantiser: give mesh_vqvae_54")
        ours = tokenizer["encoder"][-1]["points"], tokenizer["codes"]
        theirs = model["token_count"], model["code_count"]
        if ours != theirs:
            raise CheckpointError(
                f"the Mesh-VQ-VAE has {ours[0]} tokens of {ours[1]} codes, the model {theirs[0]} of {theirs[1]}: "
                "they do not belong together"
            )


def _measure_parts(config: Mapping[str, Any], state: dict[str, Tensor]) -> None:
    """Find out which body part every token moves, once body and tokenizer are both there."""
    if not config["body"] or not config["tokenizer"] or config["tokenizer"]["quantisers"] != 1:
        return
    if int(state["tokenizer.token_part"].min()) >= 0 or "body.vertex_part" not in state:
        return
    model = checkpoint.build("tokenizer", config["tokenizer"]).eval()
    prefix = "tokenizer."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    checkpoint.fill(model, own, "the imported tokenizer")
    state["tokenizer.token_part"] = measure_token_parts(model, state["body.vertex_part"], len(smpl.PARTS))


def _name(by_role: Mapping[str, Input]) -> str:
    for role in ("model", "tokenizer", "body"):
        if role in by_role:
            return by_role[role].path.stem
    return "imported"
