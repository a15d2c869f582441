"""Which body part every token moves, measured on a tokenizer that does not know: a published one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
