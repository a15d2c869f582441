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
      ``rotate_gradient``: see ``quantiser``; ``codebook_per_place``: every token has a codebook of its own;
    - ``normalise``: points are standardised by their own mean and spread over bodies, latents turned to principal
      components of what they do (both measured by the training, kept as buffers). False computes what is published;
    - ``components_of``: what latents are turned together, the "token" (default) or all tokens of a "part".
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
            places=self.token_count if self.config.get("codebook_per_place", False) else 0,
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
            if self.config.get("components_of", "token") == "part":
                turn = torch.eye(self.token_count * self.latent_size)
            else:
                turn = torch.eye(self.latent_size).repeat(self.token_count, 1, 1)
            self.register_buffer("latent_whitening", turn.clone())
            self.register_buffer("latent_colouring", turn.clone())

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
        """Code vectors ``(K, D)``, or ``(T, K, D)`` per place (of the first quantiser, where there are several)."""
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
        x = x.transpose(0, 1)
        if self.config.get("normalise", False):
            x = self._turn(x - self.latent_mean, self.latent_whitening)
        return x

    def decode_points(self, latent: Tensor) -> Tensor:
        """Latents ``(B, T, D)`` → canonical points ``(B, P, 3)``, metres."""
        if self.config.get("normalise", False):
            latent = self._turn(latent, self.latent_colouring) + self.latent_mean
        x = latent.transpose(0, 1)
        for layer in self.layers[self.depth :]:
            x = layer(x)
        points = x.transpose(0, 1)
        if self.config.get("normalise", False):
            points = points * self.point_spread + self.point_mean
        return points

    @staticmethod
    def _turn(latent: Tensor, matrix: Tensor) -> Tensor:
        """Latents ``(B, T, D)`` times a matrix for each token ``(T, D, D)`` or one for all ``(T·D, T·D)``."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.to(matrix.dtype)
            if matrix.dim() == 3:
                return torch.bmm(latent.transpose(0, 1), matrix).transpose(0, 1)
            return (latent.flatten(1) @ matrix).view_as(latent)

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
        """Turn latents into principal components of what they do: of each token, or of a part, dealt out to its tokens.

        The tokens of an arm all know where the arm is: quantised as they come, they spend their codes on saying the
        same thing many times. The latents of a part ``(tokens · D)`` are therefore taken to the metric in which a unit
        step moves the decoded points (weighted by ``mass (P)``) equally far in every direction, and turned to principal
        components there. The largest go one to each token, then the next largest, and so on: every token says something
        of its own, and all say it in similar proportions, so that one codebook serves them. Each token is scaled to
        unit variance per dimension on average. ``latent (N, T, D)`` are those that ``encode_points`` gives now, before
        any such turn; returns them turned.
        """
        size = latent[0].numel()
        flat, mean = latent.flatten(1), latent.mean(0)
        spread = flat.std(0)
        base, moved = self.decode_points(latent[:bodies]), []
        for axis in range(size):
            changed = flat[:bodies].clone()
            changed[:, axis] += step * spread[axis]
            moved.append((self.decode_points(changed.view_as(latent[:bodies])) - base) / (step * spread[axis]))
        moved = (torch.stack(moved) * (mass / bodies).sqrt()[:, None]).flatten(1)
        metric = moved @ moved.T
        whitening, colouring = torch.zeros_like(metric), torch.zeros_like(metric)
        together = self.config.get("components_of", "token") == "part"
        groups = self.token_part if together else torch.arange(self.token_count)
        places = torch.arange(size, device=latent.device).view(self.token_count, self.latent_size)
        for group in groups.unique():
            own = places[groups.to(places.device) == group]
            index = own.flatten()
            values, vectors = torch.linalg.eigh(metric[index][:, index])
            # Directions that do (nearly) nothing keep a little, so that the way back exists.
            root = values.clamp(min=1e-4 * float(values.max())).sqrt()
            known = (flat - mean.flatten())[:, index] @ (vectors * root)
            components = torch.linalg.eigh(known.T @ known).eigenvectors.flip(1)
            forth, back = (vectors * root) @ components, components.T @ (vectors / root).T
            # Component j goes to token j mod n as its (j div n)-th number.
            order = torch.arange(len(index), device=latent.device).view(self.latent_size, len(own)).T.flatten()
            scale = (known @ components)[:, order].view(len(flat), *own.shape).square().mean((0, 2)).sqrt()
            scale = scale.repeat_interleave(self.latent_size)
            whitening[index[:, None], index] = forth[:, order] / scale
            colouring[index[:, None], index] = back[order] * scale[:, None]
        if not together:
            shape, diagonal = (self.token_count, self.latent_size, self.token_count, self.latent_size), (0, 2)
            whitening, colouring = (
                m.view(shape).diagonal(0, *diagonal).permute(2, 0, 1) for m in (whitening, colouring)
            )
        self.latent_mean.copy_(mean)
        self.latent_whitening.copy_(whitening)
        self.latent_colouring.copy_(colouring)
        return self._turn(latent - mean, self.latent_whitening)


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
