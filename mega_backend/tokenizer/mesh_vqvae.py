"""Mesh-VQ-VAE: a body mesh as a few dozen tokens, each one of a few hundred codes, and back (VQ-HPS, ECCV 2024).

One class serves every body. The published SMPL network convolves all 6890 vertices. The bundled one convolves an evenly
spread subset of the vertices (``points``) and reaches the full mesh by a fixed sparse ``lift``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mesh_conv import MeshLayer, neighbours_of
from .quantiser import ResidualQuantiser

LATENT = 9


class MeshVQVAE(nn.Module):
    """Canonical mesh ``(B, V, 3)`` ↔ latents ``(B, T, D)`` ↔ tokens ``(B, T)``.

    ``config`` is a plain, JSON-able dictionary:

    - ``vertices``: V; ``lift_neighbours``: how many of the ``points`` each vertex of the full mesh follows, 0 where
      all vertices are convolved themselves;
    - ``encoder``, ``decoder``: layers ``{points, neighbours, channels, bases, residual_rate}``, with points and
      channels those that come *out*, and ``neighbours`` the width M of the connection lists;
    - ``codes``, ``quantisers``, ``shared_codebook``, ``decay``, ``commitment``, ``revive_below``,
      ``rotate_gradient``: see ``quantiser``;
    - ``normalise``: points are standardised by their own mean and spread over bodies, latents per token by what they do
      (both measured by the training, kept as buffers). False computes exactly what is published.
    """

    def __init__(self, config: Mapping):
        super().__init__()
        self.config = dict(config)
        encoder, decoder = self.config["encoder"], self.config["decoder"]
        points = decoder[-1]["points"]
        vertices, lift = self.config["vertices"], self.config.get("lift_neighbours", 0)
        if not lift and points != vertices:
            raise ValueError(f"{points} of {vertices} vertices are convolved: lift_neighbours must be 1 or more.")
        if decoder[-1]["channels"] != 3:
            raise ValueError("The last layer of the decoder must have 3 channels: x, y, z.")
        layers, points_in, channels_in = [], points, 3
        for index, layer in enumerate([*encoder, *decoder]):
            layers.append(
                MeshLayer(
                    points_in,
                    layer["points"],
                    layer["neighbours"],
                    channels_in,
                    layer["channels"],
                    layer["bases"],
                    layer["residual_rate"],
                    activation=index < len(encoder) + len(decoder) - 1,
                )
            )
            points_in, channels_in = layer["points"], layer["channels"]
        self.layers = nn.ModuleList(layers)
        self.depth = len(encoder)
        self.token_count, self.latent_size = encoder[-1]["points"], encoder[-1]["channels"]
        self.code_count = self.config["codes"]
        self.quantiser = ResidualQuantiser(
            self.config.get("quantisers", 1),
            self.config.get("shared_codebook", False),
            self.config.get("rotate_gradient", False),
            codes=self.code_count,
            dimensions=self.latent_size,
            decay=self.config.get("decay", 0.99),
            commitment=self.config.get("commitment", 0.25),
            revive_below=self.config.get("revive_below", 0.03),
        )
        self.register_buffer("points", torch.arange(points, dtype=torch.int32))
        self.register_buffer("token_part", torch.full((self.token_count,), -1, dtype=torch.int32))
        if lift:
            self.register_buffer("lift_points", torch.zeros(vertices, lift, dtype=torch.int32))
            self.register_buffer("lift_weights", torch.zeros(vertices, lift))
        if self.config.get("normalise", False):
            self.register_buffer("point_mean", torch.zeros(points, 3))
            self.register_buffer("point_spread", torch.ones(points, 1))
            self.register_buffer("latent_mean", torch.zeros(self.token_count, self.latent_size))
            eye = torch.eye(self.latent_size).expand(self.token_count, -1, -1)
            self.register_buffer("latent_whitening", eye.clone())
            self.register_buffer("latent_colouring", eye.clone())

    # Construction

    @classmethod
    def from_config(cls, config: Mapping) -> MeshVQVAE:
        """The model with every buffer allocated; ``load_state_dict`` fills connections, lift and weights."""
        return cls(config)

    @classmethod
    def build(cls, config: Mapping, connections: Sequence[np.ndarray], seed: int = 0) -> MeshVQVAE:
        """A model to train: one connection matrix ``(points_out, 1 + 2M)`` per layer, weights from ``seed``."""
        model = cls(config)
        model.set_connections(connections)
        generator = torch.Generator().manual_seed(seed)
        for layer in model.layers:
            for part in layer.parts():
                part.reset(generator)
        return model

    def set_connections(self, connections: Sequence[np.ndarray]) -> None:
        """Copy connection matrices, one per layer, into the model."""
        if len(connections) != len(self.layers):
            raise ValueError(
                f"{len(connections)} connection matrices for {len(self.layers)} layers: give one per layer."
            )
        for layer, matrix in zip(self.layers, connections, strict=True):
            for part in layer.parts():
                part.set_neighbours(neighbours_of(torch.as_tensor(np.asarray(matrix))))

    @torch.no_grad()
    def set_lift(self, points: Tensor, lift_points: Tensor, lift_weights: Tensor) -> None:
        """The convolved subset ``points (P)`` and the lift ``(V, L)`` of ``hierarchy.fit_lift``."""
        self.points.copy_(points)
        self.lift_points.copy_(lift_points)
        self.lift_weights.copy_(lift_weights)

    @property
    def lifted(self) -> bool:
        return hasattr(self, "lift_points")

    @property
    def codebook(self) -> Tensor:
        """Code vectors ``(K, D)`` (of the first quantiser, where there are several)."""
        if self.quantiser.stages == 0:
            raise ValueError("This autoencoder has no quantiser, hence no codebook.")
        return self.quantiser.quantisers[0].codebook

    # Points ↔ latents: what training works on

    def encode_points(self, points: Tensor) -> Tensor:
        """Canonical points ``(B, P, 3)``, metres → latents ``(B, T, D)``."""
        if self.config.get("normalise", False):
            points = (points - self.point_mean) / self.point_spread
        x = points.transpose(0, 1)
        for layer in self.layers[: self.depth]:
            x = layer(x)
        if self.config.get("normalise", False):
            x = torch.bmm(x - self.latent_mean[:, None], self.latent_whitening)
        return x.transpose(0, 1)

    def decode_points(self, latent: Tensor) -> Tensor:
        """Latents ``(B, T, D)`` → canonical points ``(B, P, 3)``, metres."""
        x = latent.transpose(0, 1)
        if self.config.get("normalise", False):
            x = torch.bmm(x, self.latent_colouring) + self.latent_mean[:, None]
        for layer in self.layers[self.depth :]:
            x = layer(x)
        points = x.transpose(0, 1)
        if self.config.get("normalise", False):
            points = points * self.point_spread + self.point_mean
        return points

    def lift(self, points: Tensor) -> Tensor:
        """Points ``(B, P, 3)`` → the full mesh ``(B, V, 3)``."""
        if not self.lifted:
            return points
        batch = points.shape[0]
        rows = points.transpose(0, 1).reshape(points.shape[1], batch * 3)
        lifted = F.embedding_bag(
            self.lift_points, rows, mode="sum", per_sample_weights=self.lift_weights.to(rows.dtype)
        )
        return lifted.view(-1, batch, 3).transpose(0, 1)

    # Meshes ↔ latents ↔ tokens

    def latent(self, vertices: Tensor) -> Tensor:
        """Canonical vertices ``(B, V, 3)``, metres → latents ``(B, T, D)``."""
        if vertices.dim() != 3 or vertices.shape[1] != self.config["vertices"] or vertices.shape[2] != 3:
            raise ValueError(
                f"Vertices are {tuple(vertices.shape)}; this model needs (B, {self.config['vertices']}, 3)."
            )
        return self.encode_points(vertices[:, self.points] if self.lifted else vertices)

    def quantise(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents ``(B, T, D)`` → tokens ``(B, T)``, quantised latents (with a gradient), quantiser loss.

        In training mode the codebook follows.
        """
        return self.quantiser(latent)

    def encode(self, vertices: Tensor) -> Tensor:
        """Canonical vertices ``(B, V, 3)`` → tokens ``(B, T)`` int64, or ``(B, T, S)`` with S > 1 quantisers."""
        if self.quantiser.stages == 0:
            raise ValueError("This autoencoder has no quantiser, hence no tokens: use latent().")
        return self.quantise(self.latent(vertices))[0]

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, T)`` → canonical vertices ``(B, V, 3)``, metres."""
        return self.decode_latent(self.quantiser.lookup(tokens.long()))

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Latents ``(B, T, D)``, quantised or not → canonical vertices ``(B, V, 3)``, metres."""
        return self.lift(self.decode_points(latent))

    # Statistics that the training measures

    @torch.no_grad()
    def fit_points(self, points: Tensor) -> None:
        """Take per-point mean and spread from canonical points ``(N, P, 3)``."""
        self.point_mean.copy_(points.mean(0))
        self.point_spread.copy_((points - self.point_mean).square().mean((0, 2)).sqrt()[:, None])

    @torch.no_grad()
    def fit_latents(self, latent: Tensor, mass: Tensor, step: float = 0.3, bodies: int = 16) -> Tensor:
        """Measure latents per token in the units of what they do; ``latent (N, T, D)`` as ``encode_points`` gives now.

        One codebook serves all tokens, and its distances should be the errors they cause. Latents are centred, taken to
        the metric in which a unit step moves the decoded points (weighted by ``mass (P)``) equally far in every
        direction, and scaled so that every token varies equally. Returns them so.
        """
        base, spread = self.decode_points(latent[:bodies]), latent.std(0)
        metric = torch.zeros_like(self.latent_whitening)
        for token in range(self.token_count):
            moved = []
            for axis in range(self.latent_size):
                changed = latent[:bodies].clone()
                changed[:, token, axis] += step * spread[token, axis]
                moved.append((self.decode_points(changed) - base) / (step * spread[token, axis]))
            moved = torch.stack(moved) * mass.sqrt()[:, None] / bodies**0.5
            metric[token] = torch.einsum("dbpc,ebpc->de", moved, moved)
        values, vectors = torch.linalg.eigh(metric)
        # Directions that do (nearly) nothing keep a thousandth, so that the way back exists.
        root = values.clamp(min=1e-3 * float(values.max(1).values.mean())).sqrt()
        mean = latent.mean(0)
        whitening = vectors * root[:, None]
        centred = torch.bmm((latent - mean).transpose(0, 1), whitening)
        size = centred.square().mean((1, 2)).sqrt()[:, None, None]
        whitening, colouring = whitening / size, (vectors / root[:, None]).transpose(1, 2) * size
        self.latent_mean.add_(torch.bmm(mean[:, None], self.latent_colouring)[:, 0])
        self.latent_whitening.copy_(self.latent_whitening @ whitening)
        self.latent_colouring.copy_(colouring @ self.latent_colouring)
        return (centred / size).transpose(0, 1)


def published_config(connections: Mapping[str, np.ndarray], levels: int = 7, codes: int = 512, **options) -> dict:
    """The configuration of the published network on ``levels`` pairs ``_pool{i}``/``_unpool{i}`` of matrices.

    Layers alternate a convolution at one resolution and a pooling; 7 levels end at 54 tokens.
    ``options``: ``channels`` (one per layer, encoder then decoder), or any key of the configuration.
    """
    names = layer_names(levels)
    channels = options.pop("channels", None)
    if channels is None:
        wide = [32 * 2 ** min(level // 2, 2) for level in range(levels)]
        unpooled = [wide[level if level % 2 else level - 1] for level in range(levels - 1, 0, -1)]
        channels = [*wide[:-1], LATENT, *unpooled, 3]
    layers = [
        {
            "points": int(connections[name].shape[0]),
            "neighbours": (connections[name].shape[1] - 1) // 2,
            "channels": int(width),
            "bases": 0 if pooling else 9,
            "residual_rate": 1.0 if pooling else 0.0,
        }
        for name, width, pooling in zip(names, channels, [int(name[-1]) % 2 for name in names], strict=True)
    ]
    config = {
        "vertices": layers[-1]["points"],
        "lift_neighbours": 0,
        "encoder": layers[:levels],
        "decoder": layers[levels:],
    }
    return {**config, "codes": codes, "quantisers": 1, "shared_codebook": False, "normalise": False, **options}


def layer_names(levels: int) -> list[str]:
    """File stems of the published connection matrices in the order of the layers."""
    return [f"_pool{i}" for i in range(levels)] + [f"_unpool{i}" for i in reversed(range(levels))]


def rename_published(state: Mapping[str, Tensor], depth: int = 7) -> dict[str, Tensor]:
    """The authors' state dictionary under our names; ``depth`` = number of encoder layers.

    The authors store every layer twice, once under ``encoder.`` and once under ``decoder.``: each is taken from the
    side that uses it, the copy is left out. Keys without a counterpart keep their names, so that loading refuses them.
    """
    fixed = {
        "vq_vae._embedding.weight": "quantiser.quantisers.0.codebook",
        "vq_vae._ema_w": "quantiser.quantisers.0.ema_sum",
        "vq_vae._ema_cluster_size": "quantiser.quantisers.0.ema_count",
    }
    renamed = {}
    for key, value in state.items():
        side, _, leaf = key.partition(".model.")
        name, digits = leaf.rstrip("0123456789"), leaf[len(leaf.rstrip("0123456789")) :]
        if side in ("encoder", "decoder") and digits:
            if (side == "encoder") == (int(digits) < depth):
                part = "residual" if name in ("p_neighbors", "weight_res") else "convolution"
                renamed[f"layers.{digits}.{part}.{name}"] = value
        else:
            renamed[fixed.get(key, key)] = value
    return renamed
