"""MEGA: agreement with the published programs, and truths that hold for any weights."""

import json
import sys

import numpy as np
import pytest
import torch

from mega_backend.model.conditioning import landmark_features
from mega_backend.model.mega import Mega
from mega_backend.model.prior import LatentHead

SMALL = {"token_count": 6, "code_count": 64, "width": 32, "encoder_depth": 2, "decoder_depth": 1, "heads": 4}


@pytest.fixture(scope="module")
def golden(shared):
    """(expected arrays, function giving the state dict of a named model)."""
    folder = shared / "golden"
    sys.path.insert(0, str(folder))
    try:
        import checkpoint
    finally:
        sys.path.remove(str(folder))
    shapes = json.loads((folder / "small" / "state_dict_shapes.json").read_text())
    arrays = {name: torch.from_numpy(array) for name, array in np.load(folder / "small" / "expected.npz").items()}
    return arrays, lambda name: checkpoint.state_dict(shapes[name])


def agrees(value: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((value - expected).abs().max() < 1e-4 * expected.abs().max())


@torch.no_grad()
def test_pretraining_model_agrees_with_published_program(golden):
    arrays, state = golden
    model = Mega.from_config(SMALL).eval()
    model.load_state_dict(state("vqmae"))
    assert agrees(model.logits(arrays["pre_tokens"], arrays["pre_visible"]), arrays["pre_logits"])


@torch.no_grad()
def test_image_conditioned_model_agrees_with_published_program(golden):
    arrays, state = golden
    model = Mega.from_config(SMALL | {"conditioning": {"kind": "image", "channels": 12}}).eval()
    model.load_state_dict(state("cvqmae"))
    features = arrays["hmr_features"]
    masked = torch.zeros_like(arrays["hmr_visible"])
    assert agrees(model.logits(arrays["hmr_tokens"], masked, features), arrays["hmr_masked_logits"])
    partial = model.logits(arrays["hmr_tokens"], arrays["hmr_visible"], features)
    assert agrees(partial, arrays["hmr_partial_logits"])
    rotation, camera = model.pose(features)
    assert agrees(rotation, arrays["hmr_rotation_6d"])
    assert agrees(camera, arrays["hmr_camera"])


def image_model() -> tuple[Mega, torch.Tensor]:
    torch.manual_seed(0)
    model = Mega.from_config(SMALL | {"conditioning": {"kind": "image", "channels": 12}}).eval()
    return model, torch.randn(3, 12, 2, 3)


def landmark_model() -> tuple[Mega, torch.Tensor]:
    torch.manual_seed(0)
    prior = {"latent_size": 4, "width": 32, "depth": 1}
    model = Mega.from_config(SMALL | {"conditioning": {"kind": "landmarks"}, "prior": prior}).eval()
    torch.nn.init.normal_(model.latent_head.codebook)
    landmarks = torch.rand(3, 33, 2) * 2 - 1
    return model, landmark_features(landmarks, torch.rand(3, 33), torch.randn(3, 33, 3))


MODELS = pytest.mark.parametrize("make", [image_model, landmark_model])


@MODELS
@torch.no_grad()
def test_rows_may_differ_in_their_number_of_visible_tokens(make):
    model, features = make()
    tokens = torch.randint(0, 64, (3, 6))
    visible = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    together = model.logits(tokens, visible, features)
    for row in range(3):
        alone = model.logits(tokens[row : row + 1], visible[row : row + 1], features[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_codes_at_masked_places_do_not_matter():
    model, features = image_model()
    tokens = torch.randint(0, 64, (3, 6))
    visible = torch.tensor([True, False, False, True, False, False]).expand(3, 6)
    other = torch.where(visible, tokens, (tokens + 7) % 64)
    assert torch.equal(model.logits(tokens, visible, features), model.logits(other, visible, features))


@torch.no_grad()
def test_order_of_visible_tokens_is_irrelevant_to_the_encoder():
    model, _ = image_model()
    encoder = model.encoder
    tokens = torch.tensor([[5, 9, 33]])
    places = torch.tensor([[0, 2, 5]])
    order = torch.tensor([2, 0, 1])

    def run(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        x = encoder.proj(tokens) + encoder.pos_embedding[:, 0][places]
        return encoder._run(torch.cat([encoder.cls_token, x], dim=1), None)[:, 1:]

    torch.testing.assert_close(run(tokens[:, order], places[:, order]), run(tokens, places)[:, order])


@torch.no_grad()
def test_constant_of_the_empty_encoder_follows_the_weights():
    model, features = image_model()
    tokens, visible = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.bool)
    before = model.logits(tokens, visible, features)
    assert torch.equal(before, model.logits(tokens, visible, features))
    model.encoder.cls_token.add_(1.0)
    after = model.logits(tokens, visible, features)
    assert not torch.allclose(before, after)
    fresh = Mega.from_config(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.logits(tokens, visible, features), after)


@MODELS
@torch.no_grad()
def test_condition_computed_once_equals_features_each_time(make):
    model, features = make()
    tokens = torch.randint(0, 64, (3, 6))
    visible = torch.rand(3, 6) < 0.5
    condition = model.condition(features)
    assert torch.equal(model.logits(tokens, visible, condition), model.logits(tokens, visible, features))
    assert all(torch.equal(a, b) for a, b in zip(model.pose(condition), model.pose(features), strict=True))


@torch.no_grad()
def test_fresh_landmark_model_prefers_codes_near_the_regressed_latent():
    model, features = landmark_model()
    latent = model.condition(features).latent
    nearest = torch.cdist(latent.transpose(0, 1), model.latent_head.codebook).argmin(-1).T
    nothing = torch.zeros(3, 6, dtype=torch.long)
    assert torch.equal(model.logits(nothing, nothing.bool(), features).argmax(-1), nearest)


@torch.no_grad()
def test_logits_may_have_more_than_one_valley_once_that_is_learnt():
    """Free logits begin as nothing; then two codes far apart may both be likely, and what lies between them not."""
    torch.manual_seed(0)
    head = LatentHead(1, 3, 2, width=4, free_rank=8)
    head.place_codes(torch.tensor([[[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]]))
    x, nowhere = torch.ones(1, 1, 4), torch.zeros(1, 1, 2)
    assert torch.equal(head(x, nowhere, nowhere), head(None, nowhere, nowhere))
    features = head.code_features[0]
    head.free.bias.copy_(features[0] + features[2] - 2 * features[1])
    logits = head(x, nowhere, nowhere)[0, 0]
    assert logits[0] > logits[1] and logits[2] > logits[1]


@torch.no_grad()
def test_known_tokens_move_what_the_regressor_says_and_masked_ones_do_not():
    """What lies in a masked place is nothing to read; what is known counts, in logits and in the rotation."""
    model, features = landmark_model()
    torch.nn.init.normal_(model.prior.known.weight)
    torch.nn.init.normal_(model.prior.pose.weight)
    tokens, visible = torch.randint(0, 64, (3, 6)), torch.zeros(3, 6, dtype=torch.bool)
    visible[:, :2] = True
    before = model.logits(tokens, visible, features)
    changed = torch.where(visible, tokens, (tokens + 7) % 64)
    assert torch.equal(model.logits(changed, visible, features), before)
    changed[:, 0] = (tokens[:, 0] + 7) % 64
    assert not torch.allclose(model.logits(changed, visible, features), before)
    rotation, camera, spread = model.pose_under(features, torch.stack([tokens, changed], dim=1))
    assert rotation.shape == (3, 2, 6) and camera.shape == (3, 2, 3) and (spread > 0).all()
    assert not torch.allclose(rotation[:, 0], rotation[:, 1])


@torch.no_grad()
def test_models_without_a_regressor_have_one_pose_for_all_hypotheses():
    model, features = image_model()
    rotation, camera, spread = model.pose_under(features, torch.randint(0, 64, (3, 4, 6)))
    expected = model.pose(features)
    assert all(torch.equal(a[:, n], b) for a, b in zip((rotation, camera), expected, strict=True) for n in range(4))
    assert not spread.any()


@torch.no_grad()
def test_missing_landmarks_and_estimates_hide_their_values():
    landmarks, visibility, estimate = torch.rand(2, 33, 2), torch.rand(2, 33), torch.randn(2, 33, 3)
    visibility[0, 3] = -1
    moved = landmarks.clone()
    moved[0, 3] = float("nan")
    features = landmark_features(landmarks, visibility, estimate)
    assert torch.equal(features, landmark_features(moved, visibility, estimate))
    without = landmark_features(landmarks, visibility, None)
    assert torch.equal(without, landmark_features(landmarks, visibility, torch.full_like(estimate, float("nan"))))


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="dept"):
        Mega.from_config(SMALL | {"dept": 3})


def test_gradients_reach_every_parameter_of_the_landmark_model():
    model, features = landmark_model()
    model.train()
    tokens = torch.randint(0, 64, (3, 6))
    visible = torch.tensor([[1, 0, 0, 0, 0, 0]] * 3, dtype=torch.bool)
    rotation, camera = model.pose(features)
    loss = model.logits(tokens, visible, features).square().sum() + rotation.sum() + camera.sum()
    (loss + model.logits(tokens, visible).square().sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_training_and_inference_compute_the_same():
    """They attend by different code on the CPU."""
    model, features = landmark_model()
    tokens, visible = torch.randint(0, 64, (3, 6)), torch.rand(3, 6) < 0.5
    training = model.logits(tokens, visible, features)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens, visible, features), training.detach(), rtol=1e-4, atol=1e-5)
