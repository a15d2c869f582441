"""The image backbones: published sizes, published parameter names, and what their feature maps must satisfy."""

import pytest
import torch

from mega_backend.model.backbones import BACKBONES, build

SMALL = {
    "hrnet": ({"width": 8, "stem": 8, "modules": [1, 1, 1], "blocks": 1}, 64, (120, 2, 2)),
    "resnet": ({"width": 8, "blocks": [1, 1, 1, 1]}, 64, (256, 2, 2)),
    "vit": ({"width": 32, "depth": 2, "heads": 4, "picture": [64, 48]}, 64, (32, 4, 3)),
    "reader": ({"width": 8, "input_size": 64}, 64, (33, 8)),
}
PUBLISHED = {
    "hrnet": ((720, 7, 7), 63.6e6, 66.0e6),
    "resnet": ((2048, 7, 7), 23.5e6, 23.6e6),
    "vit": ((1280, 16, 12), 630e6, 632e6),
}


def filled(name, options, seed=0):
    """A backbone whose statistics are not the neutral ones of a fresh network."""
    torch.manual_seed(seed)
    model = build(name, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_features_have_the_right_shape_and_do_not_mix_rows(name):
    options, side, shape = SMALL[name]
    model = filled(name, options)
    crops = torch.randn(3, 3, side, side)
    with torch.no_grad():
        features = model(crops)
        single = torch.cat([model(crop[None]) for crop in crops])
    assert features.shape == (3, *shape)
    assert model.channels == shape[0 if len(shape) == 3 else -1]
    torch.testing.assert_close(features, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_reach_every_parameter(name):
    options, side, _ = SMALL[name]
    model = filled(name, options).train()
    model(torch.randn(2, 3, side, side)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_hrnet_has_the_published_names():
    names = set(build("hrnet", width=8, stem=8, modules=[1, 2, 1], blocks=2).state_dict())
    expected = """conv1.weight bn2.running_var layer1.0.downsample.1.bias layer1.1.conv3.weight transition1.0.0.weight
        transition1.1.0.1.weight stage2.0.branches.1.1.conv2.weight stage2.0.fuse_layers.0.1.0.weight
        stage2.0.fuse_layers.1.0.0.0.weight transition2.2.0.1.bias stage3.1.fuse_layers.2.0.0.1.running_mean
        stage3.1.fuse_layers.2.0.1.0.weight transition3.3.0.0.weight stage4.0.fuse_layers.3.0.2.1.weight
        downsample_stage_1.6.weight downsample_stage_1.7.bias downsample_stage_2.3.weight downsample_stage_3.0.weight
    """
    assert set(expected.split()) <= names
    assert not any(name.startswith(("final_layer", "transition2.0", "downsample_stage_3.3")) for name in names)


def test_resnet_has_the_published_names():
    names = set(build("resnet", width=8, blocks=[2, 1, 1, 1]).state_dict())
    expected = "0.weight 1.running_mean 4.0.conv1.weight 4.0.downsample.0.weight 4.1.bn3.weight 7.0.downsample.1.bias"
    assert set(expected.split()) <= names
    assert {name.split(".")[0] for name in names} == {"0", "1", "4", "5", "6", "7"}


def test_vit_has_the_published_names():
    names = set(build("vit", width=16, depth=1, heads=2, picture=[32, 32]).state_dict())
    block = "norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2"
    expected = {f"blocks.0.{part}.{leaf}" for part in block.split() for leaf in ("weight", "bias")}
    expected |= {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "last_norm.weight", "last_norm.bias"}
    assert names == expected


def test_vit_looks_at_the_middle_of_a_square_crop():
    options, side, _ = SMALL["vit"]
    model = filled("vit", options)
    crops = torch.randn(1, 3, side, side)
    changed = crops.clone()
    changed[..., :8], changed[..., -8:] = 5.0, -5.0
    with torch.no_grad():
        torch.testing.assert_close(model(crops), model(changed))
        torch.testing.assert_close(model(crops), model(crops[..., 8:-8]))
    with pytest.raises(ValueError, match="crops of 64×64"):
        model(torch.zeros(1, 3, 32, 32))


def test_unknown_backbones_are_refused_by_name():
    with pytest.raises(ValueError, match="unknown backbone 'alexnet'"):
        build("alexnet")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name):
    """One forward pass at full size: the published feature map and number of parameters."""
    shape, least, most = PUBLISHED[name]
    # The numbers do not matter here, and drawing them would take longer than the pass.
    with torch.device("meta"):
        model = build(name)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(0.01 if tensor.is_floating_point() else 0)
        features = model(torch.zeros(1, 3, model.input_size, model.input_size))
    assert features.shape == (1, *shape)
    assert least < sum(parameter.numel() for parameter in model.parameters()) < most
