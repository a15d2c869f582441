"""VQ-HPS computes what its authors' program does, and does not let people in one picture influence each other."""

import json
import sys

import numpy as np
import pytest
import torch

from mega_backend.model.vqhps import VQHPS, Features

BACKBONE = {"name": "resnet", "width": 8, "blocks": [1, 1, 1, 1]}


def small(**options):
    torch.manual_seed(0)
    settings = {"token_count": 6, "code_count": 16, "width": 32, "hidden": 48, "pose_width": 24, **options}
    return VQHPS.from_config(settings).eval()


def test_agrees_with_the_reference_numbers(shared):
    golden = shared / "golden" / "small"
    sys.path.insert(0, str(shared / "golden"))
    from checkpoint import state_dict

    shapes = json.loads((golden / "state_dict_shapes.json").read_text())["vqhps"]
    state = {name: value for name, value in state_dict(shapes).items() if not name.endswith("attn.mask")}
    model = VQHPS(6, 64, width=32, hidden=48, decoder_layers=2, head_layers=2, feature_channels=720).eval()
    model.load_state_dict(state)
    expected = {name: torch.tensor(value) for name, value in np.load(golden / "expected.npz").items()}
    features, start = expected["vqhps_input"], expected["vqhps_initial_pose"]
    with torch.no_grad():
        logits = model.logits(features, start)
        rotation, camera = model.pose(features, start)
    for value, name in ((logits, "logits"), (rotation, "rotation_6d"), (camera, "camera")):
        reference = expected[f"vqhps_{name}"]
        assert (value - reference).abs().max() < 1e-4 * reference.abs().max(), name
    assert torch.equal(logits.argmax(-1), expected["vqhps_tokens"])


def test_a_picture_and_its_features_give_the_same():
    model = small(backbone=BACKBONE, initial_pose=[0.1] * 51)
    crops = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.features(crops)
        torch.testing.assert_close(model.logits(crops), model.logits(features))
        for ours, theirs in zip(model.pose(crops), model.pose(features), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert features.pose.shape == features.rotation.shape == (2, 256, 2, 2)


def test_best_does_not_mix_the_pictures_of_a_batch():
    model = small(feature_channels=12, decoder_layers=2, head_layers=2)
    features = torch.randn(4, 12, 3, 3)
    together = model.best(features)
    apart = [model.best(row[None]) for row in features]
    assert torch.equal(together.tokens, torch.cat([row.tokens for row in apart]))
    torch.testing.assert_close(together.log_probability, torch.cat([row.log_probability for row in apart]))
    assert together.tokens.shape == (4, 6)


def test_the_published_batch_of_one_is_a_picture_alone():
    model = small(feature_channels=12, decoder_layers=2, head_layers=2)
    features = torch.randn(1, 12, 3, 3)
    torch.testing.assert_close(model.logits(features), model.logits(features, alone=True))


def test_the_two_paths_have_their_own_features():
    model = small(feature_channels=12)
    first, second = torch.randn(2, 1, 12, 3, 3)
    start = torch.zeros(51)
    mixed = Features(pose=first, rotation=second)
    torch.testing.assert_close(model.logits(mixed), model.logits(first))
    torch.testing.assert_close(model.pose(mixed, start)[0], model.pose(second, start)[0])


def test_what_is_missing_is_named():
    model = small(feature_channels=12)
    with pytest.raises(ValueError, match=r"tpose\.npy"):
        model.pose(torch.zeros(1, 12, 3, 3))
    with pytest.raises(ValueError, match="without its backbones"):
        model.features(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="feature maps"):
        model.logits(torch.zeros(1, 5, 3, 3))
    with pytest.raises(ValueError, match="feature_channels"):
        VQHPS()
    with pytest.raises(ValueError, match="51"):
        small(feature_channels=12, initial_pose=[0.0] * 3)


def test_the_configuration_rebuilds_the_model():
    model = small(backbone=BACKBONE, initial_pose=[0.5] * 51)
    again = VQHPS.from_config(json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    torch.testing.assert_close(again.initial_pose, model.initial_pose)


@pytest.mark.slow
def test_published_size():
    """HRNet-W48 twice and the published transformer: one forward pass."""
    with torch.device("meta"):
        model = VQHPS(backbone={"name": "hrnet"})
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(0.01 if tensor.is_floating_point() else 0)
        crops = torch.zeros(1, 3, 224, 224)
        assert model.logits(crops).shape == (1, 54, 512)
        rotation, camera = model.pose(crops, torch.zeros(1, 51))
    assert rotation.shape == (1, 6)
    assert camera.shape == (1, 3)
