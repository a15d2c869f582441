"""The Mesh-VQ-VAE computes what the published program computes, and its fast convolution what the slow one does."""

import json
import sys

import numpy as np
import pytest
import torch

from mega_backend.tokenizer.mesh_conv import MeshConvolution
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE, layer_names, published_config, rename_published


def random_connections(generator: np.random.Generator, points_in: int, points_out: int, width: int) -> np.ndarray:
    """A connection matrix with between one and ``width`` neighbours per point, padded as published."""
    matrix = np.tile(np.array([0] + [points_in, -1] * width, np.int32), (points_out, 1))
    for row in matrix:
        count = generator.integers(1, width + 1)
        row[0], row[1 : 1 + 2 * count : 2] = count, generator.choice(points_in, count, replace=False)
        row[2 : 2 + 2 * count : 2] = 1
    return matrix


def test_published_network_has_the_published_channels():
    connections = {name: np.zeros((4, 5), np.int32) for name in layer_names(7)}
    config = published_config(connections)
    channels = [layer["channels"] for layer in [*config["encoder"], *config["decoder"]]]
    assert channels == [32, 32, 64, 64, 128, 128, 9, 128, 128, 64, 64, 32, 32, 3]


def test_agrees_with_the_reference_numbers(shared):
    golden = shared / "golden" / "small"
    sys.path.insert(0, str(shared / "golden"))
    from checkpoint import state_dict

    connections = {name: np.load(golden / "connections" / f"{name}.npy") for name in layer_names(7)}
    config = published_config(connections, codes=64, channels=[8, 8, 12, 12, 16, 16, 9, 16, 16, 12, 12, 8, 8, 3])
    model = MeshVQVAE.build(config, list(connections.values())).eval()
    shapes = json.loads((golden / "state_dict_shapes.json").read_text())["mesh_vqvae"]
    loaded = model.load_state_dict(rename_published(state_dict(shapes)), strict=False)
    assert not loaded.unexpected_keys
    assert all(key in ("points", "token_part") or key.endswith(".neighbours") for key in loaded.missing_keys)

    expected = {name: torch.tensor(value) for name, value in np.load(golden / "expected.npz").items()}
    with torch.no_grad():
        agree(model.latent(expected["mesh_vertices"]), expected["mesh_latent"])
        assert torch.equal(model.encode(expected["mesh_vertices"]), expected["mesh_tokens"])
        agree(model.decode(expected["mesh_tokens"]), expected["mesh_decoded"])
        agree(model.decode(expected["mesh_random_tokens"]), expected["mesh_random_decoded"])


def agree(value: torch.Tensor, expected: torch.Tensor) -> None:
    assert (value - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("channels_in, channels_out", [(3, 8), (8, 6), (32, 3)])
def test_factored_convolution_is_the_expanded_one(channels_in, channels_out):
    generator = torch.Generator().manual_seed(3)
    layer = MeshConvolution(40, 30, 7, channels_in, channels_out, bases=9).double()
    matrix = random_connections(np.random.default_rng(0), 40, 30, 7)
    layer.set_neighbours(torch.as_tensor(matrix)[:, 1::2])
    layer.reset(generator)
    layer.bias.data.normal_(generator=generator)
    x = torch.randn(40, 5, channels_in, dtype=torch.float64, generator=generator)

    kernels = torch.einsum("pmw,wk->pmk", layer.w_weights, layer.weights).view(30, 7, channels_out, channels_in)
    expected = torch.empty(30, 5, channels_out, dtype=torch.float64)
    for point, row in enumerate(matrix):
        neighbours = row[1 : 1 + 2 * row[0] : 2]
        expected[point] = sum(x[n] @ kernels[point, m].T for m, n in enumerate(neighbours)) + layer.bias
    assert torch.allclose(layer(x), expected, atol=1e-12)


def test_connections_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        MeshConvolution(4, 4, 3, 3, 3, 9).set_neighbours(torch.tensor([[0, 5, 1]] * 4))
