"""`mega import`: the authors' files and SMPL, in any order, into a model folder.

Every input is recognised by what is in it, never by its name; every tensor's shape is checked; what belongs nowhere is
refused by name. No code in a foreign file is ever run (``mega_backend.foreign``), nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint, foreign, published, smpl
from .checkpoint import CheckpointError

MEGA_PAGE = "https://zenodo.org/records/14974141"
VQHPS_PAGE = "https://zenodo.org/records/12651812"
CONNECTIONS_PAGE = "https://github.com/papagina/MeshConvolution"
SMPL_PAGE = "https://smpl.is.tue.mpg.de (SMPL) or https://mano.is.tue.mpg.de (SMPL-H)"
H36M_PAGE = "https://github.com/open-mmlab/mmhuman3d/blob/main/docs/getting_started.md#body-model-preparation"

CONNECTION_FILE = re.compile(r"_(un)?pool\d+(?=\.npy$)")
H36M_JOINTS, SMPL_JOINTS = 17, (24, 52)


@dataclass
class Input:
    """One recognised input: its role, what it holds, and a line that says so."""

    path: Path
    role: str  # "tokenizer", "mega", "vqhps", "connections", "body", "h36m", "joints" or "initial pose"
    text: str
    content: Any


@dataclass
class Imported:
    """What an import did: the folder, a line per input, and what the folder still lacks."""

    folder: Path
    recognised: list[str]
    missing: list[str]
    notes: list[str] = field(default_factory=list)


# Recognition


def recognise(path: Path) -> list[Input]:
    """What a file or folder is; an .npz of regressors may be several things. Raises CheckpointError if unknown."""
    kind = foreign.kind_of(path)
    if kind == "folder":
        return [_folder(path)]
    if kind == "torch":
        return [_checkpoint(path, foreign.read_torch(path))]
    if kind == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return [_checkpoint(path, load_file(path))]
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged ({error}): download it again") from None
    if kind == "npy":
        return [_array(path, foreign.read_npy(path), str(path))]
    if kind == "npz":
        archive = foreign.Archive(path)
        if "v_template" in archive:
            return [_body(path, archive)]
        if {"indptr", "indices", "data", "shape"} <= set(archive.names):
            return [_array(path, _sparse(path), str(path))]
        return [_array(path, np.asarray(archive[name]), f"{path} ({name})") for name in archive.names]
    if kind == "pickle":
        content = foreign.read_mapping(path)
        if isinstance(content, dict) and "v_template" in content:
            return [_body(path, content)]
        raise CheckpointError(f"{path} is a pickle, but not of an SMPL body: `mega import` has no use for it")
    raise CheckpointError(
        f"{path} is not a file that `mega import` knows: give checkpoints, the folder of connection matrices, "
        "an SMPL file or joint regressors"
    )


def _folder(path: Path) -> Input:
    matrices = {}
    for file in sorted(path.iterdir()):
        if match := CONNECTION_FILE.search(file.name):
            matrix = foreign.read_npy(file)
            if matrix.ndim != 2 or matrix.shape[1] < 3 or matrix.shape[1] % 2 == 0 or matrix.dtype.kind not in "iu":
                raise CheckpointError(f"{file} is not a connection matrix: rows of [n, id, ring, id, ring, …] integers")
            matrices[match[0]] = matrix
    if not matrices:
        raise CheckpointError(f"{path} is a folder without connection matrices (_pool0.npy …): give files one by one")
    return Input(path, "connections", f"connection matrices of {len(matrices)} layers", matrices)


def _checkpoint(path: Path, content: Any) -> Input:
    state = content
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state = content[key]
            break
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no dictionary of weights: give one of the authors' checkpoints")
    state = published.strip_prefix(state)
    role = published.recognise(state)
    if role is None:
        some = ", ".join(sorted(state)[:3])
        raise CheckpointError(f"{path} is a checkpoint of an unknown model ({some}, …): give one of the authors'")
    text = {"tokenizer": "Mesh-VQ-VAE checkpoint", "mega": "MEGA checkpoint", "vqhps": "VQ-HPS checkpoint"}[role]
    return Input(path, role, text, state)


def _body(path: Path, source: Any) -> Input:
    config, state = smpl.read(source, str(path))
    name = "SMPL" if config["joints"] == 24 else "SMPL-H"
    return Input(
        path, "body", f"{name} body, {config['vertices']} vertices, {config['joints']} joints", (config, state)
    )


def _sparse(path: Path) -> np.ndarray:
    from scipy import sparse

    try:
        return sparse.load_npz(path).toarray()
    except (ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is not a readable sparse matrix ({error})") from None


def _array(path: Path, array: np.ndarray, where: str) -> Input:
    """A joint regressor or an initial pose, by its shape."""
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise CheckpointError(f"{where} is not an array of finite numbers")
    squeezed = array[0] if array.ndim == 3 and len(array) == 1 else array
    if squeezed.size == 51 and squeezed.shape in ((51,), (1, 51), (17, 3)):
        return Input(path, "initial pose", "initial pose, 17 joints", squeezed.reshape(17, 3).astype(np.float32))
    if squeezed.ndim == 2 and squeezed.shape[1] == 3 and len(squeezed) > 17:
        text = f"initial pose, a mesh of {len(squeezed)} vertices"
        return Input(path, "initial pose", text, squeezed.astype(np.float32))
    if squeezed.ndim == 2 and len(squeezed) == H36M_JOINTS:
        text = f"Human3.6M joint regressor, {squeezed.shape[1]} vertices"
        return Input(path, "h36m", text, squeezed.astype(np.float32))
    if squeezed.ndim == 2 and len(squeezed) in SMPL_JOINTS:
        text = f"SMPL joint regressor, {len(squeezed)} joints, {squeezed.shape[1]} vertices"
        return Input(path, "joints", text, squeezed.astype(np.float32))
    raise CheckpointError(
        f"{where} has shape {array.shape}, which is neither a joint regressor (17, 24 or 52 rows) nor an initial pose"
    )


# Assembly


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
    by_role: dict[str, Input] = {}
    for found in inputs:
        role = "model" if found.role in ("mega", "vqhps") else found.role
        if role in by_role:
            both = f"{by_role[role].path.name} and {found.path.name}"
            raise CheckpointError(f"{both} are both a {role}: import them into folders of their own")
        by_role[role] = found
    config, state = _existing(output)
    _forget_provenance(config, by_role)
    if "body" in by_role:
        body_config, body_state = by_role["body"].content
        if config["body"] and config["body"].get("h36m") and "h36m" not in by_role:
            # A regressor that was imported earlier stays, if it fits the new body.
            kept = state.get("body.h36m_regressor")
            if kept is not None and kept.shape[1] == body_config["vertices"]:
                body_config, body_state = {**body_config, "h36m": True}, {**body_state, "h36m_regressor": kept}
        config["body"] = body_config
        _replace(state, "body", body_state)
    if "tokenizer" in by_role:
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
        found.text += f", {_tokenizer_text(settings)}"
    elif "connections" in by_role:
        raise CheckpointError("connection matrices belong to a Mesh-VQ-VAE checkpoint: give mesh_vqvae_54 with them")
    if "model" in by_role:
        found = by_role["model"]
        reader = getattr(published, found.role)
        settings, tensors = reader(found.content, found.path.name, heads, backbone_heads)
        if found.role == "vqhps" and config["model"]:  # an initial pose that was imported earlier stays
            settings["initial_pose"] = config["model"].get("initial_pose")
        config["model"] = settings
        _replace(state, "model", tensors)
        found.text += f", {_model_text(settings)}"
    notes = _add_regressors(config, state, by_role)
    _add_initial_pose(config, state, by_role)
    _check_agreement(config)
    _measure_parts(config, state)
    if name or not (output / checkpoint.CONFIG).is_file():
        config["name"] = name or _name(by_role)
    if precision:
        config["precision"] = precision
    config["provenance"] += [_provenance(found) for found in inputs]
    checkpoint.save(output, config, state)
    lines = [f"{found.path.name}: {found.text}" for found in inputs]
    return Imported(output, lines, missing(config), notes)


def _existing(output: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of the folder to add to; empty ones for a new folder."""
    if (output / checkpoint.CONFIG).is_file():
        config = checkpoint.read_config(output)
        # Copies: the file that the tensors lie in is about to be replaced.
        state = {name: value.float() if value.is_floating_point() else value for name, value in _load(output).items()}
        return config, state
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output} is a file: give the name of a folder with -o")
    if output.is_dir() and any(output.iterdir()):
        raise CheckpointError(f"{output} is a folder of other things: give the name of a new folder with -o")
    return {"format": 1, "name": "", "body": None, "tokenizer": None, "model": None, "provenance": []}, {}


def _load(output: Path) -> dict[str, Tensor]:
    return checkpoint.read_state(output)


def _replace(state: dict[str, Tensor], part: str, tensors: Mapping[str, Tensor]) -> None:
    for name in [name for name in state if name.startswith(f"{part}.")]:
        del state[name]
    state.update({f"{part}.{name}": tensor for name, tensor in tensors.items()})


def _forget_provenance(config: dict[str, Any], by_role: Mapping[str, Input]) -> None:
    """What is replaced no longer comes from where it came from."""
    models = {"mega", "vqhps"}
    replaced = {found.role for found in by_role.values()} | (models if "model" in by_role else set())
    config["provenance"] = [entry for entry in config["provenance"] if entry.get("role") not in replaced]


def _add_regressors(config: dict[str, Any], state: dict[str, Tensor], by_role: Mapping[str, Input]) -> list[str]:
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


@torch.no_grad()
def measure_token_parts(tokenizer: Any, vertex_part: Tensor, part_count: int, trials: int = 3, seed: int = 0) -> Tensor:
    """The part (T) int32 of every token: where vertices move most when it alone changes.

    tokenizer : a filled MeshVQVAE with one quantiser; vertex_part : (V) part of every vertex
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, codes = tokenizer.token_count, tokenizer.code_count
    membership = torch.nn.functional.one_hot(vertex_part.long(), part_count).float()
    moved = torch.zeros(tokens, part_count)
    places = torch.arange(tokens)
    for _ in range(trials):
        base = torch.randint(codes, (1, tokens), generator=generator)
        changed = base.repeat(tokens, 1)
        step = torch.randint(1, codes, (tokens,), generator=generator)
        changed[places, places] = (changed[places, places] + step) % codes
        still = tokenizer.decode(base)
        for rows in places.split(16):
            distance = (tokenizer.decode(changed[rows]) - still).norm(dim=-1)
            share = distance @ membership
            moved[rows] += share / share.sum(1, keepdim=True).clamp(min=1e-12)
    return moved.argmax(1).to(torch.int32)


def _name(by_role: Mapping[str, Input]) -> str:
    for role in ("model", "tokenizer", "body"):
        if role in by_role:
            return by_role[role].path.stem
    return "imported"


def _provenance(found: Input) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": found.role, "file": found.path.name, "what": found.text}
    if found.path.is_file():
        with found.path.open("rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return entry


# What a folder holds


def _tokenizer_text(config: Mapping[str, Any]) -> str:
    tokens = config["encoder"][-1]["points"]
    kind = {0: "not quantised", 1: f"of {config['codes']} codes"}.get(
        config["quantisers"], f"of {config['quantisers']} × {config['codes']} codes"
    )
    return f"{config['vertices']} vertices ↔ {tokens} tokens {kind}"


def _backbone_text(backbone: Mapping[str, Any] | None) -> str:
    if backbone is None:
        return "without backbone"
    options = ", ".join(f"{key} {json.dumps(value)}" for key, value in backbone.items() if key != "name")
    return f"{ {'hrnet': 'HRNet', 'resnet': 'ResNet', 'vit': 'ViT'}[backbone['name']] } ({options})"


def _model_text(config: Mapping[str, Any]) -> str:
    tokens = f"{config['token_count']} tokens of {config['code_count']} codes, width {config['width']}"
    if config["kind"] == "vqhps":
        return f"{tokens}, {config['heads']} heads, {_backbone_text(config['backbone'])}"
    depth = f"{config['encoder_depth']} + {config['decoder_depth']} blocks of {config['heads']} heads"
    conditioning = config["conditioning"]
    if conditioning is None:
        seen = "unconditional (pretraining)"
    elif conditioning["kind"] == "landmarks":
        seen = "on 33 landmarks"
    else:
        seen = _backbone_text(conditioning["backbone"])
    return f"{tokens}, {depth}, {seen}"


def missing(config: Mapping[str, Any]) -> list[str]:
    """What a folder lacks for recovering people in pictures: a sentence each, with where to get it."""
    lines = []
    body, tokenizer, model = config["body"], config["tokenizer"], config["model"]
    if tokenizer is None:
        lines.append(
            f"the mesh tokenizer: mesh_vqvae_54 ({MEGA_PAGE}) with the folder of connection matrices "
            f"({CONNECTIONS_PAGE})"
        )
    if model is None:
        lines.append(
            f"a model: mega_hrnet, mega_resnet or mega_vit ({MEGA_PAGE}), vqhps_hrnet or _resnet ({VQHPS_PAGE})"
        )
    elif model["kind"] == "vqhps":
        if model["backbone"] is None:
            lines.append(f"the backbones: this VQ-HPS checkpoint has none; the published ones do ({VQHPS_PAGE})")
        if model["initial_pose"] is None:
            lines.append(f"VQ-HPS's initial pose: tpose.npy ({VQHPS_PAGE}) and J_regressor_h36m.npy ({H36M_PAGE})")
    elif model["conditioning"] is None:
        lines.append(
            f"a model for pictures: this one makes random people only; mega_hrnet and others are at {MEGA_PAGE}"
        )
    elif model["conditioning"]["kind"] == "image" and model["conditioning"]["backbone"] is None:
        lines.append(f"the backbone: this MEGA checkpoint has none; the published ones do ({MEGA_PAGE})")
    if body is None:
        lines.append(f"the body: an SMPL file from {SMPL_PAGE}")
    return lines


def origins(config: Mapping[str, Any]) -> list[str]:
    """Where the parts of a folder came from, a line each."""
    return [_provenance_text(entry) for entry in config["provenance"]]


def _provenance_text(entry: Any) -> str:
    if isinstance(entry, dict) and {"file", "what"} <= set(entry):
        digest = f" (SHA-256 {entry['sha256'][:12]}…)" if "sha256" in entry else ""
        return f"{entry['file']}: {entry['what']}{digest}"
    if isinstance(entry, dict) and "stage" in entry:
        # What a line holds; all settings are in the folder's config.json.
        told = [(name, value) for name, value in entry.items() if isinstance(value, int | float | str)]
        return ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in told
        )
    return entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)


# Command line


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mega import`."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="in any order: checkpoints, the folder of connection matrices, an SMPL or SMPL-H file (.npz, .pkl), "
        "joint regressors (.npy, .npz), tpose.npy",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="model folder to make or to add to")
    parser.add_argument("--name", help="name of the model (default: that of the checkpoint's file)")
    parser.add_argument("--precision", choices=checkpoint.PRECISIONS, help="how to store weights (default: float32)")
    parser.add_argument("--heads", type=int, help="attention heads, if not the published 4 (MEGA) or 8 (VQ-HPS)")
    parser.add_argument("--backbone-heads", type=int, help="attention heads of a ViT that is not a usual one")
    parser.add_argument("--residual-rate", type=float, help="of mesh layers that mix convolution and pooling")


def run_import(arguments: argparse.Namespace) -> int:
    """Run `mega import`; returns the exit code. Raises CheckpointError with a sentence for the user."""
    done = import_files(
        arguments.files,
        arguments.output,
        arguments.name,
        arguments.heads,
        arguments.backbone_heads,
        arguments.residual_rate,
        arguments.precision,
    )
    for line in done.recognised:
        print(f"recognised  {line}")
    for line in done.notes:
        print(f"note        {line}")
    for line in done.missing:
        print(f"missing     {line}")
    print(f"written     {done.folder}")
    return 0
