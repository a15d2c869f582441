"""A model folder of a few hundred kilobytes with random weights: the whole pipeline runs on it in no time.

Its meshes are the bundled body at rest with a little noise, so that they look like somebody in pictures too.
"""

from pathlib import Path

import numpy as np
import torch

from mega_backend import checkpoint
from mega_backend.body import Body
from mega_backend.model.mega import Mega
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE

POINTS, TOKENS, CODES = 160, 20, 32


def write(folder: Path) -> Path:
    """Write the model folder; always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = Body.bundled()
        tokenizer = MeshVQVAE.from_config(_tokenizer_config(body)).eval()
        _fill(tokenizer, body)
        model = Mega.from_config(
            {
                "token_count": TOKENS,
                "code_count": CODES,
                "width": 32,
                "encoder_depth": 1,
                "decoder_depth": 1,
                "heads": 2,
                "conditioning": {"kind": "landmarks"},
                "prior": {"latent_size": 9, "width": 32, "depth": 1},
            }
        )
        with torch.no_grad():
            model.prior.pose.weight.normal_(0, 1e-3)
            # As a trained model has it: the codes' places, and roughly how well they are known.
            model.latent_head.codebook.copy_(tokenizer.codebook)
            model.latent_head.precision.mul_(0.1)
    config = {
        "format": 1,
        "name": "tiny",
        "body": {"kind": "anny"},
        "tokenizer": tokenizer.config,
        "model": {"kind": "mega"} | model.config,
        "provenance": ["random weights, for tests"],
    }
    return checkpoint.save(folder, config, checkpoint.collect_state(body, tokenizer, model))


def _tokenizer_config(body: Body) -> dict:
    def layer(points: int, neighbours: int, channels: int, bases: int) -> dict:
        rate = 0.0 if bases else 1.0
        return {"points": points, "neighbours": neighbours, "channels": channels, "bases": bases, "residual_rate": rate}

    return {
        "vertices": body.vertex_count,
        "lift_neighbours": 6,
        "encoder": [layer(POINTS, 4, 8, 2), layer(TOKENS, 4, 8, 0), layer(TOKENS, 1, 9, 2)],
        "decoder": [layer(TOKENS, 1, 8, 2), layer(POINTS, 2, 8, 0), layer(POINTS, 4, 3, 2)],
        "codes": CODES,
        "normalise": True,
    }


def _fill(tokenizer: MeshVQVAE, body: Body) -> None:
    """Neighbourhoods by plain distance on the body at rest, weights at random."""
    shape = torch.zeros(1, body.shape_count)
    rest = body.rest(shape)[0][0]
    rest = rest - rest.mean(0)
    generator = torch.Generator().manual_seed(0)
    points = torch.randperm(len(rest), generator=generator)[:POINTS]
    coarse = points[:TOKENS]

    def connections(to: torch.Tensor, source: torch.Tensor, count: int) -> np.ndarray:
        _, nearest = torch.cdist(to, source).topk(count, largest=False)
        rows = torch.full((len(to), 1 + 2 * count), count, dtype=torch.int32)
        rows[:, 1::2], rows[:, 2::2] = nearest.int(), torch.arange(count, dtype=torch.int32)
        return rows.numpy()

    fine_at, coarse_at = rest[points], rest[coarse]
    tokenizer.set_connections(
        [
            connections(fine_at, fine_at, 4),
            connections(coarse_at, fine_at, 4),
            connections(coarse_at, coarse_at, 1),
            connections(coarse_at, coarse_at, 1),
            connections(fine_at, coarse_at, 2),
            connections(fine_at, fine_at, 4),
        ]
    )
    for layer in tokenizer.layers:
        for part in layer.parts():
            part.reset(generator)
    distance, nearest = torch.cdist(rest, fine_at).topk(6, largest=False)
    weights = 1 / (distance + 1e-3) ** 2
    tokenizer.set_lift(points.int(), nearest.int(), weights / weights.sum(1, keepdim=True))
    with torch.no_grad():
        tokenizer.point_mean.copy_(fine_at)
        tokenizer.point_spread.fill_(0.05)
        tokenizer.token_part.copy_(body.vertex_part[coarse])
        for stage in tokenizer.quantiser.quantisers:
            stage.codebook.normal_(generator=generator)
