"""Every stage of training at toy size: what the tests of killing, resuming, sharing out and overfitting run on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anny_fixture
import landmark_fixture
import numpy as np
import smpl_fixture
import torch
from test_motions import write_motion

from mega_backend import checkpoint
from mega_backend.body import Body
from train import image_reader, images, landmarks, pretrain, smpl_tokenizer
from train.data.bank import tokenise
from train.data.bodies import BodySampler
from train.loop import LoopConfig, Task, seeded
from train.mesh_vqvae import Tokenizer, TokenizerConfig

LOOP = {"steps": 3, "learning_rate": 2e-3, "warmup_steps": 2, "ema_decay": 0.9, "clip_norm": 1.0, "threads": 1,
        "accelerator": "cpu", "validate_every": 2, "log_every": 1, "checkpoint_minutes": 1e-9}  # fmt: skip
MEGA = {"width": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2}
RESNET = {"name": "resnet", "blocks": [1, 1, 1, 1], "width": 8, "input_size": 32}
READER = {"name": "reader", "input_size": 32, "width": 8}
PLAIN = {"scale": 0, "shift": 0, "rotation": 0, "flip_probability": 0, "colour": 0, "blur_probability": 0,
         "occlusion_probability": 0}  # fmt: skip
NAMES = ("tokenizer", "smpl_tokenizer", "pretrain", "regressor", "masked", "image_mega", "image_vqhps", "image_reader",
         "image_regressor", "image_masked")  # fmt: skip


def write(folder: Path) -> Path:
    """Everything the stages read, below a folder."""
    body, *_ = landmark_fixture.posed(1)
    tokenizer = landmark_fixture.tokenizer(folder / "tokenizer")
    tokenise(landmark_fixture.bodies(4), body, tokenizer).save(folder / "bank.pt")
    anny_fixture.write(folder / "anny", count=4)
    models, _ = smpl_fixture.write_models(folder / "models")
    model = smpl_fixture.bodies(folder / "models")
    smpl_fixture.write_training(folder / "people", model, count=4, size=48)
    smpl_fixture.write_tokenizer(folder / "smpl", model, steps=20)
    for number, gender in enumerate(models):
        write_motion(folder / "motions" / f"{number}.npz", frames=8, seed=number, gender=np.array(gender))
    smpl_fixture.write_connections(folder / "connections")
    masked = make("masked", folder)[0]
    settings = {"format": checkpoint.FORMAT, "name": "tiny", "body": {"kind": "anny"}, "tokenizer": tokenizer.config,
                "model": {**masked.model.config, "kind": "mega"}, "provenance": []}  # fmt: skip
    checkpoint.save(folder / "landmark_model", settings, checkpoint.collect_state(None, tokenizer, masked.model))
    return folder


def make(name: str, folder: Path, loop: dict[str, Any] | None = None, batch: int = 4) -> tuple[Task, LoopConfig]:
    """A stage's task and the settings of its loop."""
    values = {"loop": {**LOOP, **(loop or {})}}
    kind, task, own = _STAGES[name](folder, batch)
    config = kind.model_validate(values | own)
    made = seeded(task, config)
    made.pictures = dict  # whole meshes drawn in software: other tests look at them
    return made, config.loop


def _tokenizer(folder: Path, batch: int):
    own = {
        "sizes": (120, 20), "lift_bodies": 8, "codes": 32, "batch": batch, "quantise_from": 0, "statistics_bodies": 64,
        "decay": 1.0, "mixed": 0.0,
        "encoder": [{"level": 1, "reach": 3, "channels": 24}, {"level": 1, "reach": 1, "channels": 9}],
        "decoder": [{"level": 1, "reach": 1, "channels": 32}, {"level": 0, "reach": 4, "channels": 3}],
    }  # fmt: skip

    def task(config: TokenizerConfig) -> Tokenizer:
        return Tokenizer(config, Body.bundled(), lambda body, split: BodySampler(body, split, None, (0, 0, 1), bank=32))

    return TokenizerConfig, task, own


def _smpl_tokenizer(folder: Path, batch: int):
    own = {"body": _smpl(folder), "motions": folder / "motions", "connections": folder / "connections", "levels": 1,
           "held_out_every": 3, "codes": 32, "batch": batch, "validation_bodies": 4}  # fmt: skip
    return smpl_tokenizer.SmplTokenizerConfig, smpl_tokenizer.SmplTokenizer, own


def _pretrain(folder: Path, batch: int):
    own = {"bank": folder / "bank.pt", "validation": folder / "bank.pt", "batch": batch, "model": MEGA,
           "code_count": landmark_fixture.CODES}  # fmt: skip
    return pretrain.PretrainConfig, pretrain.PretrainTask, own


def _landmarks(stage: str) -> Callable:
    def settings(folder: Path, batch: int):
        data = {"bank": folder / "bank.pt", "validation": folder / "bank.pt", "batch": batch}
        model = {"width": 64, "depth": 1} if stage == "regressor" else {**MEGA, "prior": {"width": 64, "depth": 1}}
        own = {"stage": stage, "data": data, "model": model, "tokenizer": folder / "tokenizer"}
        return landmarks.HmrConfig, {"regressor": landmarks.RegressorTask, "masked": landmarks.MaskedTask}[stage], own

    return settings


def _image(kind: str) -> Callable:
    def settings(folder: Path, batch: int):
        model = {"kind": "mega", **MEGA, "conditioning": {"backbone": RESNET}}
        if kind == "vqhps":
            model = {"kind": "vqhps", "width": 32, "heads": 2, "hidden": 32, "pose_width": 32, "backbone": RESNET}
        own = {"stage": "image", "body": _smpl(folder), "tokenizer": folder / "smpl", "model": model}
        return images.ImageConfig, images.ImageTask, own | _pictures(folder / "people", batch)

    return settings


def _image_reader(folder: Path, batch: int):
    own = {"stage": "image_reader", "reader": {name: READER[name] for name in ("input_size", "width")}}
    return image_reader.ReaderConfig, image_reader.ReaderTask, own | _pictures(folder / "anny", batch)


def _behind_reader(stage: str, frozen: list[str]) -> Callable:
    def settings(folder: Path, batch: int):
        own = {"stage": stage, "body": {"kind": "anny"}, "tokenizer": folder / "tokenizer", "frozen": frozen,
               "landmark_model": folder / "landmark_model", "model": {"backbone": READER}}  # fmt: skip
        return images.ImageConfig, images.ImageTask, own | _pictures(folder / "anny", batch)

    return settings


def _pictures(folder: Path, batch: int) -> dict[str, Any]:
    source = {"file": folder / "people.npz", "pictures": folder / "pictures", "keep": True}
    return {"sources": [source], "validation": source, "batch": batch, "augmentation": PLAIN}


def _smpl(folder: Path) -> dict[str, Any]:
    models = {gender: folder / "models" / f"{gender}.npz" for gender in ("neutral", "male", "female")}
    return {"kind": "smpl", "models": models, "h36m": folder / "models" / "h36m.npy"}


_STAGES = {
    "tokenizer": _tokenizer,
    "smpl_tokenizer": _smpl_tokenizer,
    "pretrain": _pretrain,
    "regressor": _landmarks("regressor"),
    "masked": _landmarks("masked"),
    "image_mega": _image("mega"),
    "image_vqhps": _image("vqhps"),
    "image_reader": _image_reader,
    "image_regressor": _behind_reader("image_regressor", ["encoder", "decoder"]),
    "image_masked": _behind_reader("image", ["backbone"]),
}


def state(task: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers that are saved, in full."""
    return {name: value.detach().clone() for name, value in task.state_dict().items()}
