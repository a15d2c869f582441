"""Mesh convolution and mesh pooling over connection lists (Zhou et al. 2020, with spatially varying kernels).

A layer takes features of ``points_in`` points to features of ``points_out`` points. Which inputs an output looks at
is a *connection matrix*, int32 ``(points_out, 1 + 2 M)``: rows ``[n, id, ring, id, ring, …]`` padded with
``(points_in, -1)``. Features travel as ``(points, batch, channels)``: with the points first, a point's neighbours are
whole contiguous rows, and contracting them is one batched matrix product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mega_backend.linear import linear

# Numbers that a convolution for inference holds between contracting neighbours and applying kernels (2 MiB).
CACHED = 2**19
DENSE_BELOW = 8
"""Inputs per neighbour up to which a dense matrix product beats gathering, see `_Layer._weighted`."""


def neighbours_of(connections: Tensor) -> Tensor:
    """The neighbour ids ``(points_out, M)`` of a connection matrix ``(points_out, 1 + 2 M)``; padding = points_in."""
    return connections[:, 1::2]


def pad_neighbours(neighbours: Tensor, width: int, padding: int) -> Tensor:
    """Widen neighbour lists ``(P, M)`` to ``(P, width)`` with the ``padding`` id."""
    return F.pad(neighbours, (0, width - neighbours.shape[1]), value=padding)


def _infers_on_cpu(weights: Tensor, rows: Tensor) -> bool:
    """Whether float32 is computed on the CPU and nobody wants gradients."""
    wants_gradient = torch.is_grad_enabled() and (weights.requires_grad or rows.requires_grad)
    return rows.device.type == "cpu" and rows.dtype == weights.dtype == torch.float32 and not wants_gradient


def _by_batch(contracted: Tensor, batch: int) -> Tensor:
    """``(P, W, B·in)`` → ``(P, B, W·in)``."""
    points, bases, _ = contracted.shape
    return contracted.view(points, bases, batch, -1).transpose(1, 2).reshape(points, batch, -1)


class _Layer(nn.Module):
    """What convolution and pooling share: the neighbour lists and which of their places are real."""

    def __init__(self, points_in: int, points_out: int, neighbours: int):
        super().__init__()
        self.points_in, self.points_out = points_in, points_out
        self.register_buffer("neighbours", torch.full((points_out, neighbours), points_in, dtype=torch.int32))

    def set_neighbours(self, neighbours: Tensor) -> None:
        """Copy neighbour lists ``(points_out, ≤ M)`` in; ids lie in 0 … points_in, the last meaning padding."""
        if neighbours.min() < 0 or neighbours.max() > self.points_in:
            raise ValueError(f"Neighbour ids must lie between 0 and {self.points_in}: the connections do not fit.")
        self.neighbours.copy_(pad_neighbours(neighbours, self.neighbours.shape[1], self.points_in))

    def _weighted(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Σ_m weights[p, m, k] · rows[n(p, m)]: ``(P, M, K)``, ``(points_in, N)`` → ``(P, K, N)``, padding silent.

        Where a point's list holds a good part of all inputs, the lists are spread out into one dense matrix product:
        more arithmetic, but no copy of every neighbour's features (4 times faster at 54 points with 23 neighbours).
        """
        points, width, kinds = weights.shape
        if _infers_on_cpu(weights, rows):
            return self._summed(weights, rows, slice(None))
        if self.points_in <= DENSE_BELOW * width:
            index = self.neighbours.long()[:, :, None].expand(-1, -1, kinds)
            dense = weights.new_zeros(points, self.points_in + 1, kinds).scatter_add(1, index, weights)
            dense = dense[:, :-1].transpose(1, 2).reshape(points * kinds, self.points_in)
            return (dense @ rows).view(points, kinds, -1)
        real = self.neighbours < self.points_in
        gathered = rows.index_select(0, torch.where(real, self.neighbours, 0).flatten()).view(points, width, -1)
        return torch.bmm((weights * real[..., None]).transpose(1, 2), gathered)

    def _summed(self, weights: Tensor, rows: Tensor, some: slice) -> Tensor:
        """``_weighted`` of some output points for inference, in one pass over their neighbours' features: no copies."""
        weights, neighbours = weights[some], self.neighbours[some]
        points, width, kinds = weights.shape
        real = (neighbours < self.points_in)[:, None].expand(-1, kinds, -1).reshape(-1, width)
        ids = torch.where(real, neighbours[:, None].expand(-1, kinds, -1).reshape(-1, width), 0)
        shares = weights.transpose(1, 2).reshape(-1, width) * real
        return F.embedding_bag(ids, rows, mode="sum", per_sample_weights=shares).view(points, kinds, -1)


class MeshConvolution(_Layer):
    """``y[p] = Σ_m Σ_w c[p,m,w] · (Θ_w x[n(p,m)]) + bias``.

    Parameters carry the published layout: ``weights (W, out·in)`` are the basis kernels Θ_w, row-major (out, in);
    ``w_weights (P, M, W)`` the coefficients c; ``bias (out)``.
    """

    def __init__(
        self, points_in: int, points_out: int, neighbours: int, channels_in: int, channels_out: int, bases: int
    ):
        super().__init__(points_in, points_out, neighbours)
        self.channels_in, self.channels_out, self.bases = channels_in, channels_out, bases
        self.weights = nn.Parameter(torch.empty(bases, channels_out * channels_in))
        self.w_weights = nn.Parameter(torch.empty(points_out, neighbours, bases))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw parameters that keep the variance of the features, with the real number of neighbours of each point."""
        real = (self.neighbours < self.points_in).sum(1).clamp(min=1).to(self.w_weights)
        self.w_weights.normal_(generator=generator).div_((real[:, None, None] * self.bases).sqrt())
        self.weights.normal_(generator=generator).div_(math.sqrt(self.channels_in))
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """``(points_in, B, in)`` → ``(points_out, B, out)``."""
        batch, kernels = x.shape[1], self.weights.view(self.bases, self.channels_out, self.channels_in)
        # Both orders are exact. Contracting the neighbours first moves M + 2W rows of `in` channels per point,
        # applying the kernels first (M + 1)·W rows of `out` channels: that pays only where few channels come out.
        points, width, bases = self.w_weights.shape
        if (width + 2 * bases) * self.channels_in <= (width + 1) * bases * self.channels_out:
            theta, rows = kernels.transpose(0, 1).flatten(1), x.flatten(1)  # (out, W·in), (points_in, B·in)
            if not _infers_on_cpu(self.w_weights, rows):
                contracted = self._weighted(self.w_weights, rows)
                return linear(_by_batch(contracted, batch), theta, self.bias)
            # A few points at a time: what lies between the two steps stays in the processor's cache.
            together = max(1, CACHED // (bases * rows.shape[1]))
            result = x.new_empty(points, batch, self.channels_out)
            for start in range(0, points, together):
                some = slice(start, start + together)
                contracted = self._summed(self.w_weights, rows, some)
                result[some] = linear(_by_batch(contracted, batch), theta, self.bias)
            return result
        mapped = x.flatten(0, 1) @ kernels.flatten(0, 1).T  # (points_in·B, W·out)
        mapped = mapped.view(-1, batch, bases, self.channels_out).transpose(1, 2).flatten(2)
        pairs = zip(self.w_weights.split(1, dim=2), mapped.unbind(1), strict=True)
        result = sum(self._weighted(weights, rows) for weights, rows in pairs)
        return result.view(points, batch, -1) + self.bias


class MeshPooling(_Layer):
    """``y[p] = Σ_m a[p,m] x[n(p,m)]`` with ``a = |p_neighbors|`` on real neighbours, normalised to sum 1.

    Serves pooling and unpooling (the published residual layer). Where the channels change, a linear map without bias,
    ``weight_res (out, in)``, comes first. Between equally many points the residual is the point itself.
    """

    def __init__(self, points_in: int, points_out: int, neighbours: int, channels_in: int, channels_out: int):
        super().__init__(points_in, points_out, neighbours)
        self.register_parameter("weight_res", None)
        self.register_parameter("p_neighbors", None)
        if channels_in != channels_out:
            self.weight_res = nn.Parameter(torch.empty(channels_out, channels_in))
        if points_in != points_out:
            self.p_neighbors = nn.Parameter(torch.empty(points_out, neighbours))

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Start from plain averages (with a little noise, so that neighbours may part) and an orthonormal-size map."""
        if self.p_neighbors is not None:
            self.p_neighbors.uniform_(0.75, 1.25, generator=generator)
        if self.weight_res is not None:
            self.weight_res.normal_(generator=generator).div_(math.sqrt(self.weight_res.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """``(points_in, B, in)`` → ``(points_out, B, out)``."""
        if self.weight_res is not None:
            x = x @ self.weight_res.T
        if self.p_neighbors is None:
            return x
        share = self.p_neighbors.abs() * (self.neighbours < self.points_in)
        share = share / (share.sum(1, keepdim=True) + 1e-8)
        return self._weighted(share[..., None], x.flatten(1)).view(-1, *x.shape[1:])


class MeshLayer(nn.Module):
    """``y = √(1−r)·ELU(convolution) + √r·residual``; r = 0 is a convolution, r = 1 a pooling or unpooling."""

    def __init__(
        self,
        points_in: int,
        points_out: int,
        neighbours: int,
        channels_in: int,
        channels_out: int,
        bases: int,
        residual_rate: float,
        activation: bool = True,
    ):
        super().__init__()
        if not 0 <= residual_rate <= 1:
            raise ValueError(f"residual_rate is {residual_rate}; it must lie between 0 and 1.")
        self.rate, self.activation = residual_rate, activation
        self.convolution = self.residual = None
        if residual_rate < 1:
            self.convolution = MeshConvolution(points_in, points_out, neighbours, channels_in, channels_out, bases)
        if residual_rate > 0:
            self.residual = MeshPooling(points_in, points_out, neighbours, channels_in, channels_out)

    def parts(self) -> list[MeshConvolution | MeshPooling]:
        return [part for part in (self.convolution, self.residual) if part is not None]

    def forward(self, x: Tensor) -> Tensor:
        """``(points_in, B, in)`` → ``(points_out, B, out)``."""
        if self.convolution is None:
            return self.residual(x)
        y = self.convolution(x)
        if self.activation:
            y = F.elu(y)
        if self.residual is None:
            return y
        return math.sqrt(1 - self.rate) * y + math.sqrt(self.rate) * self.residual(x)
