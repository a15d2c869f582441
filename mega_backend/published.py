"""The authors' checkpoints in this program's terms: what they are, their configuration, and their tensors renamed.

Nothing here but names and shapes: a checkpoint is recognised by its keys, its sizes are read off its tensors, and its
tensors are taken over as they are. Sources: the released programs of Mesh-VQ-VAE, VQ-HPS and MEGA.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .checkpoint import CheckpointError
from .tokenizer.mesh_vqvae import layer_names, rename_published

State = Mapping[str, Tensor]

MEGA_HEADS, VQHPS_HEADS = 4, 8
# Heads do not show in the tensors: the usual number for each width of ViT.
VIT_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
# What lies in the authors' files but takes no part in their results: HRNet's heat-map layer, a head of an older VQ-HPS.
UNUSED = re.compile(r"(backbone(_pose|_rot)?\.final_layer\.(weight|bias)|rotcam_feat\..*)$")
CAUSAL_MASK = re.compile(r"transformer\.dec_head\.blocks\.\d+\.attn\.mask$")


def strip_prefix(state: State) -> dict[str, Tensor]:
    """Keys without the ``module.`` that training on several GPUs leaves."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def recognise(state: State) -> str | None:
    """ "tokenizer", "mega" or "vqhps" by the keys (without prefix), None for anything else."""
    if "mesh_token_embed.weight" in state:
        return "vqhps"
    if "encoder.cls_token" in state and "decoder.mask_token" in state:
        return "mega"
    if any(name.startswith(("encoder.model.", "decoder.model.")) for name in state):
        return "tokenizer"
    return None


def without_unused(state: State) -> dict[str, Tensor]:
    """The tensors that take part in the results."""
    return {name: value for name, value in state.items() if not UNUSED.match(name)}


# What several readers need


def _get(state: State, name: str, dimensions: int, where: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"{where} lacks {name}: download it again")
    if state[name].dim() != dimensions:
        raise CheckpointError(f"{where}: {name} has shape {tuple(state[name].shape)}, not {dimensions} dimensions")
    return state[name]


def _count(state: State, prefix: str) -> int:
    """How many numbered entries there are under a prefix: ``prefix0``, ``prefix1``, …"""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(match[1]) for name in state if (match := pattern.match(name))), default=-1)


def _check(part: str, config: Mapping[str, Any], state: State, where: str) -> None:
    """Every name and shape must be that of the configured model; leftovers are refused by name."""
    try:
        with torch.device("meta"):
            module = checkpoint.build(part, config)
    except ValueError as error:
        raise CheckpointError(f"{where} does not fit together: {error}") from None
    checkpoint.compare(module.state_dict(), state, where)


# Backbones


def backbone_config(state: State, prefix: str, where: str, heads: int | None = None) -> dict[str, Any] | None:
    """Name and options of the backbone under ``prefix``; None where there is none."""
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not own:
        return None
    if any(name.startswith("stage4.") for name in own):
        return {
            "name": "hrnet",
            "width": _get(own, "transition1.0.0.weight", 4, where).shape[0],
            "stem": _get(own, "conv1.weight", 4, where).shape[0],
            "modules": [_count(own, f"stage{stage}.") for stage in (2, 3, 4)],
            "blocks": _count(own, "layer1."),
        }
    if "4.0.conv1.weight" in own:
        return {
            "name": "resnet",
            "blocks": [_count(own, f"{stage}.") for stage in (4, 5, 6, 7)],
            "width": _get(own, "0.weight", 4, where).shape[0],
        }
    if "patch_embed.proj.weight" in own:
        width, _, patch, _ = _get(own, "patch_embed.proj.weight", 4, where).shape
        count = _get(own, "pos_embed", 3, where).shape[1] - 1
        # The published pictures are 4:3; a square number of patches belongs to a square one.
        unit = math.isqrt(count // 12)
        rows, columns = (4 * unit, 3 * unit) if 12 * unit * unit == count else (math.isqrt(count),) * 2
        if rows * columns != count:
            raise CheckpointError(f"{where}: {count} patches make neither a 4:3 nor a square picture")
        if heads is None and width not in VIT_HEADS:
            raise CheckpointError(f"{where}: say how many heads its ViT of width {width} has with --backbone-heads")
        return {
            "name": "vit",
            "width": width,
            "depth": _count(own, "blocks."),
            "heads": heads or VIT_HEADS[width],
            "picture": [rows * patch, columns * patch],
            "patch": patch,
            "ratio": _get(own, "blocks.0.mlp.fc1.weight", 2, where).shape[0] // width,
        }
    raise CheckpointError(f"{where} has a backbone that is not HRNet, ResNet or ViT: {min(own)}, …")


# MEGA


def mega(
    state: State, where: str, heads: int | None = None, backbone_heads: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a MEGA checkpoint, pretrained (VQMAE) or on pictures (CVQMAE)."""
    state = without_unused(state)
    code_count, width = _get(state, "encoder.proj.weight", 2, where).shape
    conditioning = None
    backbone = backbone_config(state, "backbone.", where, backbone_heads)
    if "decoder.cond_emb.weight" in state:
        channels = _get(state, "decoder.cond_emb.weight", 2, where).shape[1]
        conditioning = {"kind": "image", "channels": channels, "backbone": backbone}
    elif backbone is not None:
        raise CheckpointError(f"{where} has a backbone but lacks decoder.cond_emb.weight: download it again")
    config = {
        "kind": "mega",
        "token_count": _get(state, "encoder.pos_embedding", 3, where).shape[0],
        "code_count": code_count,
        "width": width,
        "encoder_depth": _count(state, "encoder.transformer."),
        "decoder_depth": _count(state, "decoder.transformer."),
        "heads": heads or MEGA_HEADS,
        "conditioning": conditioning,
        "prior": None,
    }
    _check("model", config, state, where)
    return config, state


# VQ-HPS


def vqhps(
    state: State, where: str, heads: int | None = None, backbone_heads: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a VQ-HPS checkpoint."""
    state = without_unused(state)
    for name in [name for name in state if CAUSAL_MASK.match(name)]:
        mask = state.pop(name)
        if not torch.equal(mask.bool(), torch.ones_like(mask).tril().bool()):
            raise CheckpointError(f"{where}: {name} is not the causal mask of the published program")
    token_count, width = _get(state, "mesh_token_embed.weight", 2, where).shape
    pose, rotation = (backbone_config(state, f"backbone_{path}.", where, backbone_heads) for path in ("pose", "rot"))
    if pose != rotation:
        raise CheckpointError(f"{where}: its two backbones differ: {pose} and {rotation}")
    config = {
        "kind": "vqhps",
        "token_count": token_count,
        "code_count": _get(state, "transformer.dec_head.head.weight", 2, where).shape[0],
        "width": width,
        "heads": heads or VQHPS_HEADS,
        "hidden": _get(state, "transformer.encoder.layers.0.linear1.weight", 2, where).shape[0],
        "encoder_layers": _count(state, "transformer.encoder.layers."),
        "decoder_layers": _count(state, "transformer.decoder.layers."),
        "head_layers": _count(state, "transformer.dec_head.blocks."),
        "pose_width": _get(state, "fc1.weight", 2, where).shape[0],
        "backbone": pose,
        "feature_channels": _get(state, "conv_1x1.weight", 4, where).shape[1],
        "initial_pose": None,
    }
    _check("model", config, state, where)
    return config, state


# Mesh-VQ-VAE


def check_connections(matrix: np.ndarray, points_in: int, where: str) -> None:
    """Raise CheckpointError unless every row is [n, id, ring, …]: n real neighbours, then padding with points_in."""
    count, ids = matrix[:, 0], matrix[:, 1::2]
    real = np.arange(ids.shape[1]) < count[:, None]
    if (count < 1).any() or (count > ids.shape[1]).any():
        raise CheckpointError(f"{where}: its numbers of neighbours do not fit its {ids.shape[1]} places")
    if (ids[real] < 0).any() or (ids[real] >= points_in).any() or (ids[~real] != points_in).any():
        raise CheckpointError(f"{where} does not belong behind a layer of {points_in} points")


def tokenizer(
    state: State, connections: Mapping[str, np.ndarray], where: str, residual_rate: float | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a Mesh-VQ-VAE checkpoint with its connection matrices ``_pool0`` … ``_unpool0``."""
    side = {name.removeprefix("encoder.model."): value for name, value in state.items()}
    side = {name: value for name, value in side.items() if re.fullmatch(r"[a-z_]+\d+", name)}
    depth = 1 + max(int(re.search(r"\d+$", name)[0]) for name in side)
    if depth % 2:
        raise CheckpointError(f"{where} has {depth} layers; encoder and decoder should have equally many")
    names = layer_names(depth // 2)
    if missing := [name for name in names if name not in connections]:
        files = ", ".join(f"{name}.npy" for name in missing)
        raise CheckpointError(f"{where} has {depth} layers, but the connection folder lacks {files}")
    layers, channels = [], 3
    points = connections[names[0]].shape[0]
    neighbours: dict[str, Tensor] = {}
    for index, name in enumerate(names):
        matrix = connections[name]
        check_connections(matrix, points, f"{name}.npy")
        layer, parts = _layer(side, index, channels, points, matrix, residual_rate, where)
        lists = torch.tensor(matrix[:, 1::2], dtype=torch.int32)
        neighbours |= {f"layers.{index}.{part}.neighbours": lists for part in parts}
        layers.append(layer)
        points, channels = layer["points"], layer["channels"]
    half = depth // 2
    quantisers, renamed = _quantisers(state, where)
    config = {
        "vertices": points,
        "lift_neighbours": 0,
        "encoder": layers[:half],
        "decoder": layers[half:],
        "normalise": False,
        **quantisers,
    }
    token_count = layers[half - 1]["points"]
    renamed = rename_published(renamed, half) | neighbours
    renamed["points"] = torch.arange(points, dtype=torch.int32)
    renamed["token_part"] = torch.full((token_count,), -1, dtype=torch.int32)
    module = _build_tokenizer(config, where)
    checkpoint.compare(module.state_dict(), renamed, where)
    return config, renamed


def _build_tokenizer(config: Mapping[str, Any], where: str) -> torch.nn.Module:
    try:
        return checkpoint.build("tokenizer", config)
    except ValueError as error:
        raise CheckpointError(f"{where} does not fit together: {error}") from None


def _layer(
    side: State, index: int, channels: int, points: int, matrix: np.ndarray, rate: float | None, where: str
) -> tuple[dict[str, Any], list[str]]:
    """One layer's configuration, its tensors checked against its connection matrix; and which parts it has."""
    width = (matrix.shape[1] - 1) // 2
    layer = {"points": matrix.shape[0], "neighbours": width, "channels": channels, "bases": 0, "residual_rate": 0.0}
    for name in (f"w_weights{index}", f"p_neighbors{index}"):
        if name in side and tuple(side[name].shape[:2]) != (matrix.shape[0], width):
            raise CheckpointError(
                f"{where}: {name} has {' × '.join(map(str, side[name].shape[:2]))} points and neighbours, its "
                f"connection matrix {matrix.shape[0]} × {width}: these matrices belong to another network"
            )
    parts = []
    if f"weights{index}" in side:
        layer["bases"] = side[f"weights{index}"].shape[0]
        layer["channels"] = _get(side, f"bias{index}", 1, where).shape[0]
        parts.append("convolution")
    if f"p_neighbors{index}" in side or f"weight_res{index}" in side or not parts:
        if parts and rate is None:
            raise CheckpointError(f"{where}: layer {index} mixes convolution and pooling: say how with --residual-rate")
        layer["residual_rate"] = rate if parts else 1.0
        if f"weight_res{index}" in side:
            layer["channels"] = side[f"weight_res{index}"].shape[0]
        parts.append("residual")
    return layer, parts


def _quantisers(state: State, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Quantiser settings, and the state with a residual quantiser's tensors under this program's names."""
    renamed = dict(state)
    stages = _count(state, "vq_vae.layers.")
    if "vq_vae._embedding.weight" in state:
        codes = _get(state, "vq_vae._embedding.weight", 2, where).shape[0]
        return {"codes": codes, "quantisers": 1, "shared_codebook": False}, renamed
    if not stages:
        return {"codes": 0, "quantisers": 0, "shared_codebook": False}, renamed
    leaves = {"codebook": "_embedding.weight", "ema_sum": "_ema_w", "ema_count": "_ema_cluster_size"}
    found = [
        {ours: renamed.pop(f"vq_vae.layers.{stage}.{theirs}", None) for ours, theirs in leaves.items()}
        for stage in range(stages)
    ]
    if any(tensor is None for stage in found for tensor in stage.values()):
        raise CheckpointError(f"{where} lacks tensors of its {stages} quantisers: download it again")
    # One codebook for all stages is stored once per stage.
    shared = stages > 1 and all(torch.equal(stage[leaf], found[0][leaf]) for stage in found[1:] for leaf in leaves)
    for number, stage in enumerate(found[:1] if shared else found):
        renamed |= {f"quantiser.quantisers.{number}.{leaf}": tensor for leaf, tensor in stage.items()}
    return {"codes": found[0]["codebook"].shape[0], "quantisers": stages, "shared_codebook": shared}, renamed
