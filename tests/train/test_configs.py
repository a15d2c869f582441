"""Every configuration that comes with the project is valid; the published ones build what `mega import` makes of the
authors' files: the same names, shapes and settings, of the published sizes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import stand_in
from mega_backend import checkpoint, published
from mega_backend.model.mega import Mega
from mega_backend.tokenizer.mesh_vqvae import MeshVQVAE, layer_names, published_config
from train import config
from train.image_reader import ReaderConfig
from train.images import ImageConfig, build
from train.landmarks import HmrConfig
from train.mesh_vqvae import TokenizerConfig
from train.pretrain import PretrainConfig
from train.smpl_tokenizer import SmplTokenizerConfig

TOKENS, CODES, WIDTH = 54, 512, 1024


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


def on_meta(settings, bodies=None):
    with torch.device("meta"):
        return build(settings.model, SimpleNamespace(token_count=TOKENS, code_count=CODES), bodies).eval()


def imports_as_itself(model, reader, settings):
    """`mega import` reads the same settings off the tensors, and a folder of these settings holds the same tensors."""
    found, state = reader(model.state_dict(), "a checkpoint")
    with torch.device("meta"):
        rebuilt = checkpoint.build("model", found)
    shapes = [{name: value.shape for name, value in part.state_dict().items()} for part in (model, rebuilt)]
    assert shapes[0] == shapes[1] and state.keys() == shapes[0].keys()
    names = ["width", "heads", "encoder_depth", "decoder_depth", "hidden", "encoder_layers", "decoder_layers"]
    for name in (*names, "head_layers", "token_count", "code_count"):
        assert found.get(name) == model.config.get(name), name
    assert found.keys() - {"kind"} <= settings.keys() | model.config.keys()
    return rebuilt


def transformer(width, depth):
    """Parameters of pre-norm blocks: query, key and value without bias, everything else with; two LayerNorms."""
    return depth * (12 * width**2 + 10 * width)


def mega_parameters(channels=None):
    """Of §3.1 and §3.2 of the method, without the backbone."""
    encoder = (CODES + TOKENS + 1) * WIDTH + transformer(WIDTH, 12) + 2 * WIDTH
    decoder = (1 + TOKENS + 1) * WIDTH + transformer(WIDTH, 4) + CODES * (WIDTH + 1)
    if channels is None:
        return encoder + decoder
    pose = WIDTH * (channels + 1) + WIDTH * (WIDTH + 1) + (6 + 3) * (WIDTH + 1)
    return encoder + decoder + WIDTH * (channels + 1) + pose


def parameters(module):
    return sum(value.numel() for value in module.parameters())


# ViT-H: 32 blocks with biased query, key and value, patches of 16 × 16, a place for each of 16 × 12 and for cls, a last
# norm. ResNet-50 without its classifier. HRNet-W48 without its heat maps (17 × 49), and with what the three coarser
# branches of the last module, of which heat maps need none, take from the others.
VIT_H = transformer(1280, 32) + 32 * 3 * 1280 + 1280 * (3 * 16 * 16 + 1) + 193 * 1280 + 2 * 1280
RESNET_50 = 23_508_032
HRNET_W48 = 63_595_745 - 17 * 49 + 97_344 + 344_544 + 1_288_320


@pytest.mark.parametrize(
    ("name", "channels", "places", "backbone"),
    [
        ("mega_hrnet", 720, 49, HRNET_W48),
        ("mega_mix", 720, 49, HRNET_W48),
        ("mega_resnet50", 2048, 49, RESNET_50),
        ("mega_vit", 1280, 192, VIT_H),
    ],
)
def test_published_models_have_the_published_sizes(name, channels, places, backbone):
    settings = config.load(ImageConfig, name)
    model = on_meta(settings)
    side = model.backbone.input_size
    features = model.features(torch.empty(1, 3, side, side, device="meta"))
    assert features.shape[1] == channels and features.shape[2] * features.shape[3] == places
    own = [value for part, value in model.backbone.named_parameters() if not part.startswith("downsample")]
    assert sum(value.numel() for value in own) == backbone
    assert parameters(model) - parameters(model.backbone) == mega_parameters(channels)
    rebuilt = imports_as_itself(model, published.mega, settings.model)
    assert rebuilt.backbone.input_size == side
    assert settings.loop.learning_rate <= 1e-3 and settings.loop.betas == (0.9, 0.95)
    assert settings.batch * settings.loop.shards == 256


@pytest.mark.parametrize(("name", "backbone"), [("vqhps_hrnet", HRNET_W48), ("vqhps_resnet50", RESNET_50)])
def test_vqhps_has_the_published_sizes(name, backbone):
    settings = config.load(ImageConfig, name)
    model = on_meta(settings, SimpleNamespace(initial_pose=lambda: [0.0] * 51))
    assert model.transformer.dec_head.head.weight.shape == (CODES, 512) and model.fc1.weight.shape[0] == WIDTH
    for part in (model.backbone_pose, model.backbone_rot):
        own = [value for name, value in part.named_parameters() if not name.startswith("downsample")]
        assert sum(value.numel() for value in own) == backbone
    imports_as_itself(model, published.vqhps, settings.model)
    assert settings.loop.learning_rate == 1e-4 and settings.batch == 32


@pytest.mark.parametrize("name", ["pretrain", "pretrain_smpl"])
def test_pretraining_is_what_the_published_models_begin_as(name):
    settings = config.load(PretrainConfig, name)
    with torch.device("meta"):
        model = Mega.from_config({"token_count": TOKENS, "code_count": settings.code_count, **settings.model})
    assert parameters(model) == mega_parameters()
    imports_as_itself(model, published.mega, settings.model)
    assert settings.batch * settings.loop.shards == 256
    # What `start: runs/pretrain_smpl` takes over, by name and shape: all of it.
    begun = on_meta(config.load(ImageConfig, "mega_resnet50")).state_dict()
    assert all(begun[name].shape == value.shape for name, value in model.state_dict().items())


def test_smpl_tokenizer_has_the_published_sizes():
    """Layers as in §2.2 of the method; the connections are stand-ins of the published sizes."""
    settings = config.load(SmplTokenizerConfig, "mesh_vqvae_smpl")
    matrices = stand_in.connections()
    network = published_config(matrices, settings.levels, settings.codes)
    layers = [*network["encoder"], *network["decoder"]]
    down = [6890, 1925, 1925, 400, 400, 54, 54]
    assert [layer["points"] for layer in layers] == [*down, 54, 400, 400, 1925, 1925, 6890, 6890]
    assert [layer["channels"] for layer in layers] == [32, 32, 64, 64, 128, 128, 9, 128, 128, 64, 64, 32, 32, 3]
    assert [layer["bases"] for layer in layers] == [9, 0] * 3 + [9, 9] + [0, 9] * 3
    model = MeshVQVAE.build(network, [matrices[name] for name in layer_names(settings.levels)], 0)
    assert (model.token_count, model.code_count) == (TOKENS, CODES)
    assert parameters(model) == pytest.approx(2.6e6, rel=0.05)
    for name, matrix in matrices.items():
        published.check_connections(matrix, stand_in.LEVELS[stand_in.MATRICES[name][0]], name)
    assert settings.loop.optimizer == "adam" and settings.loop.learning_rate == 5e-5 and settings.batch == 16


def test_stand_in_files_are_where_the_configurations_look(tmp_path, monkeypatch):
    monkeypatch.setattr(stand_in, "write_connections", lambda folder: folder.mkdir(parents=True))
    stand_in.write(tmp_path, people=2)
    for name in config.names():
        settings = config.load(kind(name), name)
        if getattr(getattr(settings, "body", None), "kind", None) != "smpl":
            continue
        assert all((tmp_path / path).is_file() for path in settings.body.models.values()), name
        if isinstance(settings, SmplTokenizerConfig):
            assert (tmp_path / settings.connections).is_dir() and (tmp_path / settings.motions).is_dir()
            continue
        for source in (*settings.sources, settings.validation):
            monkeypatch.chdir(tmp_path)
            loaded = source.load()
            assert len(loaded.annotations) == 2
            assert all((loaded.folder / str(picture)).is_file() for picture in loaded.annotations.names), name
    assert np.load(tmp_path / "body_models" / "J_regressor_h36m.npy").shape == (17, stand_in.VERTICES)
