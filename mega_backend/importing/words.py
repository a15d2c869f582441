"""Tokenizers and models in a line, for the user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def tokenizer_text(config: Mapping[str, Any]) -> str:
    """How many vertices and tokens a tokenizer of this configuration has."""
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


def model_text(config: Mapping[str, Any]) -> str:
    """Tokens, size and conditioning of a model of this configuration."""
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
