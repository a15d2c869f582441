"""The fast linear layer is the plain one."""

import pytest
import torch
from torch.nn import functional as F

from mega_backend.linear import Linear, linear


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (0, 40), (3, 17, 40)])
def test_computes_what_torch_does(shape, bias, gelu):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(24, 40, generator=generator)
    offset = torch.randn(24, generator=generator) if bias else None
    expected = F.linear(x, weight, offset)
    expected = F.gelu(expected) if gelu else expected
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, offset, gelu), expected, rtol=1e-5, atol=1e-5)


def test_parts_of_tensors():
    """Rows of a weight, and inputs that are not contiguous."""
    x, weight = torch.randn(2, 9, 64)[:, 3:, :32], torch.randn(48, 32)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight[16:]), F.linear(x, weight[16:]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(linear(x.transpose(0, 1), weight), F.linear(x.transpose(0, 1), weight))


def test_gradients_are_those_of_torch():
    layer = Linear(8, 4)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x, gelu=True).sum().backward()
    ours = [x.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone()]
    expected = torch.autograd.grad(F.gelu(F.linear(x, layer.weight, layer.bias)).sum(), [x, layer.weight, layer.bias])
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_other_precisions_keep_theirs():
    layer = Linear(8, 4)
    with torch.no_grad():
        assert layer.double()(torch.randn(2, 8, dtype=torch.float64)).dtype == torch.float64
        assert layer.bfloat16()(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(torch.randn(2, 8)).dtype == torch.bfloat16
