"""What a model folder lacks, and where one gets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEGA_PAGE = "https://zenodo.org/records/14974141"
VQHPS_PAGE = "https://zenodo.org/records/12651812"
CONNECTIONS_PAGE = "https://github.com/papagina/MeshConvolution"
SMPL_PAGE = "https://smpl.is.tue.mpg.de (SMPL) or https://mano.is.tue.mpg.de (SMPL-H)"
H36M_PAGE = "https://github.com/open-mmlab/mmhuman3d/blob/main/docs/getting_started.md#body-model-preparation"


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
