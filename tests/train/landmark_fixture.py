"""A few bodies and a tiny tokenizer of the bundled body, made without motion capture: what landmark training needs."""

import numpy as np
import torch

from mega_backend import checkpoint
from mega_backend.body import Body
from mega_backend.rotations import about_axis
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE
from train.data.bank import Bank, prepare

POINTS, TOKENS, CODES = 120, 12, 48


def posed(count: int, seed: int = 0) -> tuple[Body, torch.Tensor, torch.Tensor]:
    """The body, world rotations (count, J, 3, 3) with arms and legs anywhere, and shapes (count, S)."""
    body = Body.bundled()
    generator = torch.Generator().manual_seed(seed)
    rotations = torch.eye(3).repeat(count, body.joint_count, 1, 1)
    for side, sign in (("L", 1.0), ("R", -1.0)):
        arm = about_axis(2, sign * (2.4 * torch.rand(count, generator=generator) - 1.4))
        leg = about_axis(0, 1.6 * torch.rand(count, generator=generator) - 1.1)
        for number, name in enumerate(body.joint_names):
            if name.endswith(side) and name.startswith(("upperarm", "lowerarm", "wrist", "finger")):
                rotations[:, number] = arm
            if name.endswith(side) and name.startswith(("upperleg", "lowerleg", "foot", "toe")):
                rotations[:, number] = leg
    return body, rotations, body.shape_bank[:count]


def bodies(count: int, seed: int = 0) -> Bank:
    """A bank without tokens."""
    return prepare(*posed(count, seed))


def tokenizer(folder) -> MeshVQVAE:
    """An untrained tokenizer with a fitted codebook, also saved to a model folder."""
    body, rotations, shape = posed(200, seed=9)
    points = torch.linspace(0, body.vertex_count - 1, POINTS).long()
    places = body.mean[points]
    apart = torch.cdist(body.mean, places)
    nearest = apart.topk(3, largest=False)
    between = torch.cdist(places, places)
    encoder = between[:: POINTS // TOKENS].topk(20, largest=False).indices
    decoder = between[:, :: POINTS // TOKENS].topk(4, largest=False).indices
    config = {
        "vertices": body.vertex_count,
        "lift_neighbours": 3,
        "encoder": [{"points": TOKENS, "neighbours": 20, "channels": 9, "bases": 9, "residual_rate": 0.0}],
        "decoder": [{"points": POINTS, "neighbours": 4, "channels": 3, "bases": 9, "residual_rate": 0.0}],
        "codes": CODES,
        "quantisers": 1,
        "normalise": True,
        "part_names": list(body.part_names),
    }
    model = MeshVQVAE.build(config, [_connections(encoder), _connections(decoder)], seed=1)
    weights = torch.softmax(-20 * nearest.values, dim=1)
    model.token_part.copy_(body.vertex_part[points[:: POINTS // TOKENS]])
    model.set_lift(points.int(), nearest.indices.int(), weights)
    meshes = body.subset(points).canonical_skin(rotations, shape)
    with torch.no_grad():
        model.fit_points(meshes)
        model.quantiser.quantisers[0].fit(model.encode_points(meshes).flatten(0, 1))
    model.eval()
    settings = {
        "format": checkpoint.FORMAT,
        "name": "tiny",
        "body": {"kind": "anny"},
        "tokenizer": model.config,
        "model": None,
        "provenance": [],
    }
    checkpoint.save(folder, settings, checkpoint.collect_state(None, model))
    return model


def _connections(neighbours: torch.Tensor) -> np.ndarray:
    count, width = neighbours.shape
    rows = torch.ones(count, 1 + 2 * width, dtype=torch.int32)
    rows[:, 0] = width
    rows[:, 1::2] = neighbours.int()
    return rows.numpy()
