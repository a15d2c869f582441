"""Every configuration that comes with the project is valid, and the published ones build the published sizes."""

from types import SimpleNamespace

import pytest
import torch

from train import config
from train.hmr import HmrConfig
from train.image_reader import ReaderConfig
from train.images import ImageConfig, build
from train.mesh_vqvae import TokenizerConfig
from train.pretrain import PretrainConfig
from train.smpl_tokenizer import SmplTokenizerConfig


def kind(name):
    if config.peek(name, [], "stage") == "image_reader":
        return ReaderConfig
    if str(config.peek(name, [], "stage")).startswith("image"):
        return ImageConfig
    if config.peek(name, [], "stage"):
        return HmrConfig
    if config.peek(name, [], "bank"):
        return PretrainConfig
    return SmplTokenizerConfig if config.peek(name, [], "body") else TokenizerConfig


@pytest.mark.parametrize("name", config.names())
def test_configuration_is_valid(name):
    settings = config.load(kind(name), name)
    assert settings.loop.steps > settings.loop.warmup_steps
    with pytest.raises(config.ConfigError, match="surprise"):
        config.load(kind(name), name, ["surprise=1"])


@pytest.mark.parametrize(
    ("name", "channels", "places"),
    [("mega_hrnet", 720, 49), ("mega_resnet50", 2048, 49), ("mega_vit", 1280, 192), ("mega_mix", 720, 49)],
)
def test_published_models_have_the_published_sizes(name, channels, places):
    settings = config.load(ImageConfig, name)
    with torch.device("meta"):
        model = build(settings.model, SimpleNamespace(token_count=54, code_count=512), None)
        side = model.backbone.input_size
        crops = torch.empty(1, 3, side, side)
        features = model.eval().features(crops)
    assert features.shape[1] == channels and features.shape[2] * features.shape[3] == places
    assert len(model.encoder.transformer) == 12 and model.decoder.cond_emb.weight.shape == (1024, channels)
    assert settings.loop.learning_rate <= 1e-3 and settings.loop.betas == (0.9, 0.95)
    assert settings.batch * settings.loop.shards == 256


@pytest.mark.parametrize("name", ["vqhps_hrnet", "vqhps_resnet50"])
def test_vqhps_has_the_published_sizes(name):
    settings = config.load(ImageConfig, name)
    bodies = SimpleNamespace(initial_pose=lambda: [0.0] * 51)
    with torch.device("meta"):
        model = build(settings.model, SimpleNamespace(token_count=54, code_count=512), bodies)
    assert model.transformer.dec_head.head.weight.shape == (512, 512)
    assert settings.loop.learning_rate == 1e-4 and settings.batch == 32
