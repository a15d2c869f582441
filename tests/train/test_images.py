"""Training from pictures: learns a handful by heart, resumes, exports a folder that recovers people."""

import dataclasses

import numpy as np
import pytest
import torch
from smpl_fixture import bodies, write_models, write_tokenizer, write_training

from mega_backend import checkpoint
from mega_backend.body import Body
from train import images, loop
from train.data import annotations
from train.data.anny import AnnyBodies


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    models, h36m = write_models(folder / "models")
    model = bodies(folder / "models")
    write_tokenizer(folder / "tokenizer", model)
    write_training(folder / "people", model, count=4, size=64)
    return folder, models, h36m


def settings(data, **changes):
    folder, models, h36m = data
    source = {"file": folder / "people" / "people.npz", "pictures": folder / "people" / "pictures"}
    backbone = {"name": "resnet", "blocks": [1, 1, 1, 1], "width": 8, "input_size": 64}
    values = {
        "stage": "image",
        "loop": {"steps": 60, "learning_rate": 2e-3, "warmup_steps": 10, "accelerator": "cpu", "validate_every": 1000},
        "sources": [source],
        "validation": source,
        "batch": 4,
        "augmentation": {
            "scale": 0, "shift": 0, "rotation": 0, "flip_probability": 0, "colour": 0, "blur_probability": 0,
            "occlusion_probability": 0,
        },
        "body": {"kind": "smpl", "models": models, "h36m": h36m},
        "tokenizer": folder / "tokenizer",
        "model": {
            "kind": "mega", "width": 64, "encoder_depth": 1, "decoder_depth": 1, "heads": 2,
            "conditioning": {"backbone": backbone},
        },
    }  # fmt: skip
    return images.ImageConfig.model_validate({**values, **changes})


def test_a_handful_is_learnt_by_heart(data, tmp_path):
    config = settings(data)
    task = loop.seeded(images.ImageTask, config)
    # The published heads drop half of their features: without that, rotations can be learnt by heart too.
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    long = config.loop.model_copy(update={"steps": 300})
    before = task.eval().validate()
    task.train()
    loop.train(task, long, tmp_path)
    task.train()  # batch statistics of the handful itself
    batch = task.shard(0, 0, torch.Generator().manual_seed(0))
    batch["visible"][:] = False
    _, scalars = task(batch)
    assert scalars["token"] < 0.1 and scalars["accuracy"] > 0.98
    assert scalars["rotation"] < 0.02
    after = task.eval().validate()
    assert after["pa_mpjpe"] < 0.7 * before["pa_mpjpe"] and after["degrees"] < 0.5 * before["degrees"]


def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path):
    short = {"steps": 6, "accelerator": "cpu", "validate_every": 100, "checkpoint_minutes": 1e-9}
    config = settings(data, loop=short, augmentation={})

    class Cut(images.ImageTask):
        def shard(self, step, shard, generator):
            if step == 3:
                raise RuntimeError("power cut")
            return super().shard(step, shard, generator)

    def fresh(kind=images.ImageTask):
        torch.manual_seed(0)
        return kind(config)

    whole = loop.train(fresh(), config.loop, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(fresh(Cut), config.loop, tmp_path / "cut")
    resumed = loop.train(fresh(), config.loop, tmp_path / "cut")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "vit", "width": 32, "depth": 1, "heads": 2, "picture": [64, 48], "patch": 16},
        {"name": "hrnet", "width": 4, "stem": 8, "modules": [1, 1, 1], "blocks": 1},
    ],
    ids=["vit", "hrnet"],
)
def test_the_other_published_backbones_train_resume_and_are_exported(backbone, data, tmp_path):
    model = {"kind": "mega", "width": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
    model["conditioning"] = {"backbone": backbone}
    for steps in (1, 2):
        short = {"steps": steps, "accelerator": "cpu", "ema_decay": 0.9, "workers": 1}
        config = settings(data, model=model, loop=short, augmentation={})
        task = loop.train(loop.seeded(images.ImageTask, config), config.loop, tmp_path / "run")
    loaded = checkpoint.load(images.export(task, tmp_path / "model", "tiny", {"stage": "image"}))
    crops = images.normalise(images.held_out(config.validation.load(), task.size, 4)["picture"])
    with torch.no_grad():
        found, expected = (part.best(part.features(crops)).tokens for part in (loaded.model, task.model))
    assert torch.equal(found, expected)


def test_vqhps_trains_and_both_kinds_export(data, tmp_path):
    backbone = {"name": "resnet", "blocks": [1, 1, 1, 1], "width": 8, "input_size": 64}
    small = {"width": 32, "heads": 2, "hidden": 32, "pose_width": 32, "backbone": backbone}
    for kind, config in (
        ("vqhps", settings(data, model={"kind": "vqhps", **small})),
        ("mega", settings(data)),
    ):
        task = images.ImageTask(config)
        loss, scalars = task(task.shard(0, 0, torch.Generator().manual_seed(0)))
        loss.backward()
        unused = [name for name, p in task.named_parameters() if p.grad is None]
        assert not unused, unused
        assert set(scalars) >= {"token", "rotation", "joint", "accuracy", "skipped"}
        folder = images.export(task, tmp_path / kind, "tiny", {"stage": "image"})
        loaded = checkpoint.load(folder)
        assert loaded.config["model"]["kind"] == kind and loaded.config["body"]["h36m"]
        crops = images.normalise(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        task.eval()
        expected, found = (model.best(model.features(crops)).tokens for model in (task.model, loaded.model))
        assert torch.equal(expected, found)
        again = images.ImageTask(settings(data, start=folder, **({"model": config.model})))
        assert torch.equal(next(again.model.parameters()), next(task.model.parameters()))


def test_evaluation_files_can_be_trained_on(data, tmp_path):
    """3DPW for fine-tuning: SMPL's 24 joints take the place of the 17 annotated ones."""
    folder = data[0]
    table = annotations.read(folder / "people" / "people.npz")
    joints = np.concatenate([table.joints, table.joints[:, :7]], 1)
    annotations.write(
        tmp_path / "3dpw.npz", dataclasses.replace(table, joints=joints, joint_set="smpl24"), "evaluation"
    )
    source = {"file": tmp_path / "3dpw.npz", "pictures": folder / "people" / "pictures"}
    task = images.ImageTask(settings(data, sources=[source], validation=None))
    batch = task.shard(0, 0, torch.Generator().manual_seed(0))
    assert batch["joints"].shape == (4, 24, 3)
    loss, scalars = task(batch)
    assert torch.isfinite(loss) and scalars["joint"] > 0


def test_pictures_for_the_log(data):
    task = images.ImageTask(settings(data)).eval()
    shown = task.pictures()["recovered"]
    assert shown.dtype == np.uint8 and shown.shape == (128, 4 * 64, 3)
    assert not np.array_equal(shown[:64], shown[64:])


def test_wrong_settings_are_explained(data, tmp_path):
    _, models, _ = data
    with pytest.raises(ValueError, match="female"):
        images.ImageTask(
            settings(data, body={"kind": "smpl", "models": {"neutral": models["neutral"], "male": models["male"]}})
        )
    with pytest.raises(ValueError, match="vertices"):
        images.ImageTask(settings(data, body={"kind": "anny"}))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="give its weights"):
        images.ImageTask(settings(data, backbone_weights=tmp_path / "other.pth"))


def test_backbones_of_other_programs_are_read(data, tmp_path):
    task = images.ImageTask(settings(data))
    places = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    renamed = {}
    for name, value in task.model.backbone.state_dict().items():
        head, _, rest = name.partition(".")
        renamed[f"module.{places[head]}.{rest}"] = value + 1
    torch.save({"state_dict": renamed, "epoch": 3}, tmp_path / "resnet.pth")
    other = images.ImageTask(settings(data, backbone_weights=tmp_path / "resnet.pth"))
    for a, b in zip(task.model.backbone.parameters(), other.model.backbone.parameters(), strict=True):
        assert torch.equal(a + 1, b)


def test_anny_is_posed_and_scored_like_smpl():
    model = AnnyBodies()
    part = model.subset(torch.arange(0, Body.bundled().vertex_count, 50))
    pose, shape = 0.2 * torch.randn(2, 63, generator=torch.Generator().manual_seed(1)), model.body.shape_bank[:2]
    assert torch.allclose(model.canonical(pose, shape)[:, ::50], part.canonical(pose, shape), atol=1e-5)
    joints = model.joints(model.canonical(pose, shape))
    assert joints.shape == (2, 17, 3)
    assert len(model.initial_pose()) == 51
