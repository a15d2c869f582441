"""SMPL's first two stages on fixtures: the command trains, exports, writes tokens; pretraining learns them."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from smpl_fixture import write_connections, write_models
from test_motions import write_motion

import mega_backend.checkpoint as checkpoint
from train import loop, mesh_vqvae, pretrain, smpl_tokenizer


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder with everything stage 1 reads, and its configuration."""
    folder = tmp_path_factory.mktemp("stage")
    models, h36m = write_models(folder / "models")
    for number, gender in enumerate(("male", "female", "neutral")):
        write_motion(folder / "motions" / f"{number}.npz", frames=40, seed=number, gender=np.array(gender))
    write_connections(folder / "connections")
    config = {
        "loop": {"steps": 150, "optimizer": "adam", "learning_rate": 0.01, "accelerator": "cpu"},
        "body": {"kind": "smpl", "models": models, "h36m": h36m},
        "motions": str(folder / "motions"),
        "connections": str(folder / "connections"),
        "held_out_every": 3,
        "levels": 1,
        "codes": 64,
        "batch": 8,
        "validation_bodies": 16,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config, default=str))))
    return folder, models


def test_stages_one_and_two(stage, tmp_path, monkeypatch, capsys):
    folder, models = stage
    monkeypatch.setattr(sys, "argv", ["mesh_vqvae", str(folder / "tiny.yaml"), "--run", str(tmp_path / "run")])
    mesh_vqvae.main()
    loaded = checkpoint.load(tmp_path / "run" / "final")
    assert loaded.config["body"]["kind"] == "smpl" and loaded.tokenizer.token_count == 24
    assert (loaded.tokenizer.token_part >= 0).all()
    errors = loaded.config["provenance"][0]["vertex_error_mm"]
    assert errors < 250  # an untrained network is off by 340
    given = [f"--{gender}={path}" for gender, path in models.items()]
    given += ["--motions", str(folder / "motions"), "--held-out-every", "3", "-o", str(tmp_path / "tokens")]
    smpl_tokenizer.main([str(tmp_path / "run" / "final"), *given])
    tokens = torch.load(tmp_path / "tokens" / "train.pt", weights_only=True)["tokens"]
    assert tokens.shape == (40, 24) and tokens.min() >= 0 and tokens.max() < 64
    settings = pretrain.PretrainConfig.model_validate(
        {
            "loop": {"steps": 60, "learning_rate": 5e-3, "accelerator": "cpu"},
            "bank": tmp_path / "tokens" / "train.pt",
            "validation": tmp_path / "tokens" / "val.pt",
            "batch": 16,
            "code_count": 64,
            "model": {"width": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2},
        }
    )
    task = pretrain.PretrainTask(settings)
    before = float(task(task.shard(0, 0, torch.Generator().manual_seed(0)))[0].detach())
    loop.train(task, settings.loop, tmp_path / "pretrain")
    after = float(task(task.shard(0, 0, torch.Generator().manual_seed(0)))[0].detach())
    assert after < 0.75 * before
    capsys.readouterr()


def test_a_handful_of_bodies_is_learnt_by_heart(stage, tmp_path):
    folder, _ = stage
    overrides = ["batch=2", "loop.learning_rate=0.02", "validation_bodies=2"]
    config = mesh_vqvae.configuration.load(smpl_tokenizer.SmplTokenizerConfig, folder / "tiny.yaml", overrides)
    task = smpl_tokenizer.SmplTokenizer(config)
    fixed = task.shard(0, 0, torch.Generator().manual_seed(0))
    task.shard = lambda step, shard, generator: fixed
    task.train()
    loop.train(task, config.loop.model_copy(update={"steps": 300}), tmp_path)
    _, scalars = task.eval()(fixed)
    assert scalars["distance_mm"] < 20  # from 340


def test_wrong_connections_are_explained(stage):
    folder, _ = stage
    with pytest.raises(ValueError, match="_pool0"):
        load = mesh_vqvae.configuration.load
        smpl_tokenizer.SmplTokenizer(
            load(smpl_tokenizer.SmplTokenizerConfig, folder / "tiny.yaml", [f"connections={folder / 'models'}"])
        )
