"""The quantiser follows its latents as computed by hand, revives dead codes, and comes in several stages or none."""

import pytest
import torch

from mega_backend.tokenizer.quantiser import Quantiser, ResidualQuantiser, rotated, straight_through


def filled(codes: list[list[float]], **options) -> Quantiser:
    quantiser = Quantiser(len(codes), len(codes[0]), **options)
    quantiser.codebook.copy_(torch.tensor(codes))
    quantiser.ema_sum.copy_(torch.tensor(codes))
    return quantiser


def test_moving_average_is_the_hand_computed_one():
    quantiser = filled([[0.0, 0.0], [10.0, 0.0]], decay=0.9, epsilon=0.5, revive_below=0.0).train()
    latent = torch.tensor([[1.0, 0.0], [0.0, 2.0], [9.0, 1.0]])
    tokens, codes, loss = quantiser(latent)
    assert tokens.tolist() == [0, 0, 1]
    assert torch.equal(codes, torch.tensor([[0.0, 0.0], [0.0, 0.0], [10.0, 0.0]]))
    assert loss == pytest.approx(0.25 * (1 + 4 + 1 + 1) / 6)
    count = [0.9 + 0.1 * 2, 0.9 + 0.1 * 1]
    smoothed = [(n + 0.5) / (sum(count) + 2 * 0.5) * sum(count) for n in count]
    expected = [[0.1 * 1 / smoothed[0], 0.1 * 2 / smoothed[0]], [(9 + 0.1 * 9) / smoothed[1], 0.1 * 1 / smoothed[1]]]
    assert torch.allclose(quantiser.codebook, torch.tensor(expected))


def test_nothing_moves_in_evaluation():
    quantiser = Quantiser(8, 3).eval()
    before = quantiser.codebook.clone()
    quantiser(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(quantiser.codebook, before)


def test_dead_codes_revive():
    torch.manual_seed(0)
    quantiser = Quantiser(32, 2, revive_below=0.1).train()
    quantiser.codebook[1:] += 100.0
    latent = torch.randn(4000, 2)
    for part in latent.split(200) * 20:
        quantiser(part)
    assert quantiser.nearest(latent).unique().numel() == 32


def test_k_means_uses_every_code_and_beats_drawn_codes():
    latent = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.1])
    quantiser = Quantiser(32, 3)

    def distortion() -> float:
        return float((quantiser.lookup(quantiser.nearest(latent)) - latent).square().sum(1).mean())

    quantiser.fit(latent, iterations=0)
    drawn = distortion()
    quantiser.fit(latent, iterations=30)
    assert distortion() < 0.8 * drawn and quantiser.nearest(latent).unique().numel() == 32
    with pytest.raises(ValueError, match="give more bodies"):
        quantiser.fit(latent[:5])


@pytest.mark.parametrize("shared", [False, True])
def test_stages_add_up_and_each_codes_the_rest(shared):
    quantiser = ResidualQuantiser(3, shared, codes=64, dimensions=4).eval()
    latent = torch.randn(10, 6, 4, generator=torch.Generator().manual_seed(0))
    tokens, quantised, _ = quantiser(latent)
    assert tokens.shape == (10, 6, 3) and len(quantiser.quantisers) == (1 if shared else 3)
    assert torch.allclose(quantiser.lookup(tokens), quantised, atol=1e-6)
    rest = latent
    for stage, codes in enumerate(quantiser):
        assert torch.equal(codes.nearest(rest), tokens[..., stage])
        rest = rest - codes.lookup(tokens[..., stage])


def test_without_a_quantiser_latents_pass_and_tokens_are_refused():
    quantiser = ResidualQuantiser(0, codes=8, dimensions=4)
    latent = torch.randn(2, 3, 4)
    assert torch.equal(quantiser(latent)[1], latent)
    with pytest.raises(ValueError, match="no tokens"):
        quantiser.lookup(torch.zeros(2, 3, dtype=torch.long))


def test_gradients_pass_to_the_latents():
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(5, 4, generator=generator, requires_grad=True)
    codes, direction = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    assert torch.allclose(straight_through(latent, codes), codes) and torch.allclose(
        rotated(latent, codes), codes, atol=1e-5
    )
    (gradient,) = torch.autograd.grad((straight_through(latent, codes) * direction).sum(), latent)
    assert torch.allclose(gradient, direction)
    # The rotation takes the latent to its code; a gradient along the code comes back along the latent.
    (gradient,) = torch.autograd.grad((rotated(latent, codes) * codes).sum(), latent)
    assert (torch.cosine_similarity(gradient, latent) > 0.999).all()


def test_codebooks_per_place_are_one_quantiser_for_each():
    """Tokens, codes and placing equal those of separate quantisers; such codebooks do not move by themselves."""
    latent = torch.randn(400, 3, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.2])[:, None]
    together = Quantiser(16, 2, decay=1.0, places=3)
    together.fit(latent)
    tokens, codes, loss = together(latent)
    # Sixteen codes of two numbers leave about a tenth of the variance, of which the commitment is a quarter.
    assert loss < together.commitment * 0.15 * latent.square().mean()
    for place in range(3):
        alone = Quantiser(16, 2, decay=1.0)
        alone.codebook.copy_(together.codebook[place])
        expected, expected_codes, _ = alone(latent[:, place])
        assert torch.equal(tokens[:, place], expected)
        assert torch.equal(codes[:, place], expected_codes)
    assert torch.equal(together.lookup(tokens[7:8]), codes[7:8])
    with pytest.raises(ValueError, match="decay"):
        Quantiser(16, 2, places=3)
