"""Sampling: every place filled, given tokens kept, and the same sample whatever else is in the batch."""

from itertools import pairwise

import pytest
import torch

from mega_backend.model import sampling
from mega_backend.model.mega import Mega

CONFIG = {"token_count": 7, "code_count": 50, "width": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def model() -> Mega:
    torch.manual_seed(1)
    return Mega.from_config(CONFIG | {"conditioning": {"kind": "image", "channels": 5}}).eval()


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(2))


def test_batch_equals_its_persons_one_by_one(model, features):
    together = model.draw(features, 4, generator=5)
    for person in range(3):
        alone = model.draw(features[person : person + 1], 4, generator=5)
        assert torch.equal(together.tokens[person], alone.tokens[0])
        torch.testing.assert_close(together.log_probability[person], alone.log_probability[0])


def test_a_sample_does_not_depend_on_how_many_are_drawn(model, features, monkeypatch):
    many = model.sample(features, 6, generator=5)
    assert torch.equal(model.sample(features, 2, generator=5), many[:, :2])
    assert torch.equal(model.sample(features, 4, generator=5, first=2), many[:, 2:])
    monkeypatch.setattr("mega_backend.model.mega.ROWS", 4)
    assert torch.equal(model.sample(features, 6, generator=5), many)


def test_seeds_may_be_given_per_person_or_as_a_generator(model, features):
    mixed = model.sample(features, 2, generator=[5, 6, 5])
    assert torch.equal(mixed[1], model.sample(features, 2, generator=6)[1])
    assert not torch.equal(mixed[1], model.sample(features, 2, generator=5)[1])
    first, second = (model.sample(features, 2, generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(first, second)


def test_global_random_state_is_neither_read_nor_moved(model, features):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model.sample(features, 2, generator=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, model.sample(features, 2, generator=3))


def test_visible_tokens_are_kept_and_the_others_sampled(model, features):
    tokens = torch.randint(0, 50, (3, 7))
    visible = torch.tensor([[1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    drawn = model.draw(features, 5, generator=0, tokens=tokens, visible=visible)
    kept = visible[:, None].expand(-1, 5, -1)
    assert torch.equal(drawn.tokens[kept], tokens[:, None].expand(-1, 5, -1)[kept])
    assert (drawn.log_probability[2] == 0).all()
    assert len(drawn.tokens[0].unique(dim=0)) > 1
    best = model.best(features, tokens=tokens, visible=visible)
    assert torch.equal(best.tokens[visible], tokens[visible])


def test_one_step_is_the_deterministic_answer(model, features):
    drawn = model.draw(features, 3, steps=1, generator=4)
    best = model.best(features)
    assert torch.equal(drawn.tokens, best.tokens[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(drawn.log_probability, best.log_probability[:, None].expand(-1, 3))


def test_unconditional_samples_differ_and_repeat(model):
    drawn = model.sample(None, 6, generator=1, steps=8)
    assert drawn.shape == (1, 6, 7)
    assert len(drawn[0].unique(dim=0)) == 6
    assert torch.equal(drawn, model.sample(None, 6, generator=1, steps=8))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_every_place_of_every_sample_is_filled_from_the_distribution(steps):
    """Codes the model gives no probability never appear: no place is left at a default code."""
    allowed = torch.tensor([3, 4])
    scores = torch.full((8, 54, 512), -1e9)
    scores[..., allowed] = 0.0
    start = torch.zeros(8, 54, dtype=torch.long)
    generators = [sampling.row_generator(0, row) for row in range(8)]
    seen = []

    def logits(tokens: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        seen.append(visible.sum(1))
        return scores

    drawn = sampling.generate(logits, scores, start, start.bool(), generators, steps, 1.0)
    assert torch.isin(drawn.tokens, allowed).all()
    assert len(seen) == steps - 1
    assert all((a <= b).all() for a, b in pairwise(seen))
    torch.testing.assert_close(drawn.log_probability, torch.full((8,), -54 * 0.6931472))


def test_frequencies_of_one_place_follow_the_noise_scale():
    """At scale τ the drawn code follows softmax(logits / τ)."""
    logits = torch.tensor([1.0, 0.0, -1.0])
    generators = [sampling.row_generator(7, row) for row in range(4000)]
    noisy = logits + 0.5 * sampling.gumbel((3,), generators, "cpu")
    frequency = torch.bincount(noisy.argmax(-1), minlength=3) / 4000
    torch.testing.assert_close(frequency, torch.softmax(logits / 0.5, 0), atol=0.03, rtol=0)


def test_known_codes_are_answered_by_the_nearest_to_the_expected_one():
    """Many near codes outweigh the single likeliest one."""
    codebook = torch.tensor([[[0.0], [1.0], [1.1], [1.2], [3.0]]])
    log_probability = torch.tensor([[[0.3, 0.2, 0.2, 0.2, 0.1]]]).log()
    assert sampling.likeliest(log_probability, None) == 0
    assert sampling.likeliest(log_probability, codebook) == 1  # expected 0.96


def test_every_place_has_codes_of_its_own():
    codebook = torch.randn(3, 8, 2)
    tokens = torch.randint(0, 8, (5, 3))
    codes = sampling.lookup(codebook, tokens)
    assert torch.equal(codes[4, 2], codebook[2, tokens[4, 2]])
    assert torch.equal(sampling.nearest_code(codes, codebook), tokens)
    certain = torch.nn.functional.one_hot(tokens, 8).float()
    assert torch.equal(sampling.expected_code(certain, codebook), codes)


@pytest.mark.parametrize("own", [0.0, 0.5, 1.0])
def test_noise_of_different_places_goes_together(monkeypatch, own):
    """Unit variance everywhere; correlations that `together` says, and stronger the less each place has for itself."""
    monkeypatch.setattr(sampling, "OWN", own)
    together = torch.tensor([[0.9, 0.0], [0.0, 0.5], [-0.6, 0.0], [0.0, 0.0]])
    codes = sampling.Codes(torch.zeros(2, 5, 2), together)
    noise = codes.noise([sampling.row_generator(3, row) for row in range(40000)]).flatten(1)
    covariance = noise.T @ noise / len(noise)
    first, third = (1 - own**2 * (1 - share**2) for share in (0.9, 0.6))
    expected = torch.eye(4)
    expected[0, 2] = expected[2, 0] = -((first * third) ** 0.5)
    torch.testing.assert_close(covariance, expected, atol=0.05, rtol=0)


def test_codes_drawn_with_noise_have_the_mean_and_spread_of_the_probability():
    side = torch.linspace(-6, 6, 25)
    codebook = torch.cartesian_prod(side, side)[None]
    precision = torch.tensor([[1.5, 0.6], [0.6, 0.8]])
    away = codebook - torch.tensor([1.0, -0.5])
    log_probability = torch.einsum("tkd,de,tke->tk", away, -0.5 * precision, away).log_softmax(-1)
    probability = log_probability.exp().expand(4000, -1, -1)
    noise = torch.randn(4000, 1, 2, generator=torch.Generator().manual_seed(0))
    drawn = sampling.lookup(codebook, sampling.draw_near(probability, 1.0, noise, codebook))[:, 0]
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, -0.5]), atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), torch.linalg.inv(precision), atol=0.15, rtol=0)
    halved = sampling.lookup(codebook, sampling.draw_near(probability, 0.5, noise, codebook))[:, 0]
    torch.testing.assert_close(halved.std(0), 0.5 * drawn.std(0), atol=0.06, rtol=0)
    assert torch.equal(
        sampling.draw_near(probability[:5], 0.0, noise[:5], codebook),
        sampling.likeliest(log_probability[None], codebook).expand(5, 1),
    )


def test_progress_ends_at_one_and_may_cancel(model, features):
    seen = []
    model.sample(features, 2, steps=4, progress=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1.0]

    def cancel(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample(features, 2, progress=cancel)


@pytest.mark.gpu
def test_device_does_not_change_the_sample(model, features):
    expected = model.sample(features, 3, generator=5)
    moved = Mega.from_config(model.config).eval()
    moved.load_state_dict(model.state_dict())
    assert torch.equal(moved.cuda().sample(features.cuda(), 3, generator=5).cpu(), expected)
