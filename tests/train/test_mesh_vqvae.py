"""The tokenizer's training: a tiny network over the real body learns, quantises, resumes and is exported."""

import pytest
import torch

from mega_backend import checkpoint
from mega_backend.body import Body
from train import config as configuration
from train.data.bodies import BodySampler
from train.loop import step_generator
from train.mesh_vqvae import Tokenizer, TokenizerConfig, build, export, point_mass


def settings(**changes) -> TokenizerConfig:
    layers = [{"level": 1, "reach": 3, "channels": 24}, {"level": 1, "reach": 1, "channels": 9}]
    decoder = [{"level": 1, "reach": 1, "channels": 32}, {"level": 0, "reach": 4, "channels": 3}]
    values = {
        "loop": {"steps": 60, "learning_rate": 3e-3, "precision": "32-true", "threads": 1},
        "sizes": (120, 20),
        "encoder": layers,
        "decoder": decoder,
        "lift_bodies": 40,
        "codes": 32,
        "batch": 8,
        "quantise_from": 40,
        "statistics_bodies": 64,
        **changes,
    }
    return TokenizerConfig.model_validate(values)


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.bundled()


def synthetic(body: Body, split: str) -> BodySampler:
    return BodySampler(body, split, None, (0.0, 0.0, 1.0), bank=64)


@pytest.fixture(scope="module")
def task(body) -> Tokenizer:
    return Tokenizer(settings(), body, synthetic)


def test_lift_brings_held_out_bodies_back_to_a_millimetre(body):
    config = configuration.load(TokenizerConfig, "tokenizer", ["lift_bodies=150"])
    model = build(config, body, synthetic(body, "train"))
    assert (model.lift_weights.sum(1) - 1).abs().max() < 1e-5
    people = synthetic(body, "test").sample(20, step_generator(0, 0, 0))
    vertices = body.canonical_skin(people["rotations"], people["shape"])
    error = (model.lift(vertices[:, model.points.long()]) - vertices).norm(dim=-1)
    assert error.mean() < 1e-3
    assert model.token_count == 54 and model.code_count == 512 and model.latent_size == 9


def test_weighted_point_error_is_the_error_of_the_full_mesh(task, body):
    points = torch.randn(4, len(task.model.points), 3, generator=torch.Generator().manual_seed(0))
    # Neighbouring points err alike, as they do in practice: a smooth error.
    smooth = 0.01 * task.model.point_mean[None] * points[:, :1].abs()
    weighted = (smooth.norm(dim=-1) @ point_mass(task.model)).mean()
    full = task.model.lift(smooth).norm(dim=-1).mean()
    assert weighted == pytest.approx(float(full), rel=0.15)


def test_learns_quantises_and_goes_into_a_model_folder(task, body, tmp_path):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    errors = []
    for step in range(60):
        task.begin_step(step)
        loss, scalars = task(task.shard(step, 0, step_generator(0, step, 0)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(scalars["distance_mm"]))
    assert sum(errors[30:40]) < 0.6 * sum(errors[:10])
    assert bool(task.quantising) and errors[-1] < errors[0]

    task.eval()
    folder = export(task, tmp_path / "tokenizer", {"stage": "test"})
    loaded = checkpoint.load(folder).tokenizer
    people = synthetic(body, "test").sample(3, step_generator(0, 1, 0))
    vertices = body.canonical_skin(people["rotations"], people["shape"])
    with torch.no_grad():
        tokens = loaded.encode(vertices)
        assert torch.equal(tokens, task.model.encode(vertices))
        assert torch.equal(loaded.decode(tokens), task.model.decode(tokens))
        assert loaded.decode(tokens).shape == vertices.shape
        single = torch.cat([loaded.encode(one[None]) for one in vertices])
        assert torch.equal(single, tokens)


def test_a_step_of_data_depends_on_its_number_only(task):
    first = task.shard(40, 0, step_generator(0, 40, 0))["points"].clone()
    task.shard(3, 0, step_generator(0, 3, 0))
    assert first.shape == (8, 120, 3)
    assert not torch.equal(first, task.shard(41, 0, step_generator(0, 41, 0))["points"])


def test_exchanged_parts_mean_points_of_the_body_their_tokens_come_from(task):
    points = task.shard(0, 0, step_generator(0, 0, 0))["points"]
    latent = torch.arange(8.0)[:, None, None].expand(8, 20, 9)
    source = torch.arange(8.0)[:, None, None].expand(8, 120, 3)
    torch.manual_seed(0)
    mixed, target, weight = task._mix(latent, source)
    assert points.shape == target.shape and torch.equal(mixed[:4], latent[:4]) and torch.equal(target[:4], source[:4])
    nearest = task._nearest_tokens[:, 0]
    assert torch.equal(mixed[:, nearest, 0], target[..., 0])
    second = mixed[:, task._nearest_tokens[:, 1], 0]
    assert ((weight > 0) == (second == target[..., 0])).all()


def test_motion_capture_must_be_named(body):
    with pytest.raises(ValueError, match="mocap=FOLDER"):
        Tokenizer(settings(), body)


@pytest.mark.parametrize("together", ["token", "part"])
def test_principal_components_change_what_tokens_say_and_not_the_mesh(body, together):
    task = Tokenizer(settings(components_of=together), body, synthetic).eval()
    model, points = task.model, task._points(200, step_generator(0, 5, 0))
    with torch.no_grad():
        latent = model.encode_points(points)
        before = model.decode_points(latent)
        turned = model.fit_latents(latent, task.mass)
        assert torch.allclose(model.encode_points(points), turned, atol=1e-3)
        assert (model.decode_points(turned) - before).norm(dim=-1).mean() < 1e-4
    assert torch.allclose(turned.square().mean((0, 2)), torch.ones(20), atol=1e-2)
    groups = model.token_part if together == "part" else torch.arange(20)
    for group in groups.unique():
        own = turned[:, groups == group].flatten(1)
        covariance = own.T @ own / len(own)
        rest = covariance - torch.diag(covariance.diagonal())
        assert rest.abs().max() < 2e-2 * covariance.diagonal().max(), "components are uncorrelated"


@pytest.mark.parametrize("stages", [0, 3])
def test_residual_and_plain_variants_are_configurations(body, stages):
    task = Tokenizer(settings(quantisers=stages, quantise_from=0), body, synthetic)
    task.begin_step(0)
    loss, _ = task(task.shard(0, 0, step_generator(0, 0, 0)))
    loss.backward()
    task.eval()
    people = synthetic(body, "test").sample(2, step_generator(0, 1, 0))
    vertices = body.canonical_skin(people["rotations"], people["shape"])
    assert task.model.decode_latent(task.model.latent(vertices)).shape == vertices.shape
    if stages:
        tokens = task.model.encode(vertices)
        assert tokens.shape == (2, 20, 3) and task.model.decode(tokens).shape == vertices.shape
    else:
        with pytest.raises(ValueError, match="no tokens"):
            task.model.encode(vertices)


def test_training_begins_as_an_exported_network_with_new_tokens(task, body, tmp_path):
    folder = export(task, tmp_path / "first", {"stage": "test"})
    second = Tokenizer(settings(start=folder, quantise_from=0, decay=1.0), body, synthetic)
    assert torch.equal(second.model.layers[0].convolution.weights, task.model.layers[0].convolution.weights)
    second.begin_step(0)
    second(second.shard(0, 0, step_generator(0, 0, 0)))
    placed = second.model.codebook.clone()
    second(second.shard(1, 0, step_generator(0, 1, 0)))
    assert torch.equal(second.model.codebook, placed), "a decay of 1 freezes the codebook"
    with pytest.raises(ValueError, match="another network"):
        Tokenizer(settings(start=folder, sizes=(100, 20)), body, synthetic)


def test_codes_are_placed_again_and_in_the_end_only_the_decoder_learns(body):
    """Codebooks for each token, tokens for each part; after `freeze_encoder_from` nothing before the codes moves."""
    tokens = {"head": 3, "torso": 5, "left_arm": 3, "right_arm": 3, "left_leg": 3, "right_leg": 3}
    changes = {"codebook_per_place": True, "decay": 1.0, "revive_below": 0.0, "tokens": tokens}
    steps = {"quantise_from": 0, "place_again": (2,), "freeze_encoder_from": 2}
    task = Tokenizer(settings(**changes, **steps), body, synthetic)
    parts = {name: int((task.model.token_part == i).sum()) for i, name in enumerate(body.part_names)}
    assert {name: count for name, count in parts.items() if count} == tokens
    assert task.model.codebook.shape == (20, 32, 9)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    seen = []
    for step in range(4):
        task.begin_step(step)
        loss, _ = task(task.shard(step, 0, step_generator(0, step, 0)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append((task.model.layers[0].convolution.weights.clone(), task.model.codebook.clone()))
    (first, placed), (second, kept), (third, again), (fourth, last) = seen
    assert not torch.equal(first, second) and torch.equal(second, third) and torch.equal(third, fourth)
    assert torch.equal(placed, kept) and not torch.equal(kept, again) and torch.equal(again, last)


def test_tokens_of_unknown_parts_are_refused(body):
    with pytest.raises(ValueError, match="tail"):
        build(settings(tokens={"tail": 20}), body, synthetic(body, "train"))
