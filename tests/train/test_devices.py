"""Stages run where the network is: nothing in them lies on the CPU for good, and data are drawn on the device."""

import contextlib
import os
import signal

import pytest
import stages
import torch

from mega_backend import checkpoint
from tools import train_on_device
from train import loop
from train.data import views
from train.data.bank import Bank
from train.landmarks import ViewTask, regressor


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stages.write(tmp_path_factory.mktemp("devices"))


@pytest.mark.parametrize("name", ["regressor", "image_reader", "image_regressor"])
def test_no_tensor_of_a_step_stays_behind_on_the_cpu(name, data, monkeypatch):
    """On the meta device, which computes shapes alone and refuses to mix with others."""
    task, _ = stages.make(name, data)
    batch = task.shard(0, 0, loop.step_generator(0, 0, 0))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    # Nothing can be drawn on that device.
    monkeypatch.setattr(regressor, "step_mask_generator", lambda device: None)
    monkeypatch.setattr(
        regressor,
        "draw_known",
        lambda count, parts, *_: torch.empty(count, len(parts), dtype=torch.bool, device="meta"),
    )
    loss, _ = task.to("meta")({key: value.to("meta") for key, value in batch.items()})
    assert loss.device.type == "meta"


def test_views_are_drawn_where_the_bank_is(data, monkeypatch):
    bank = Bank.load(data / "bank.pt").to(torch.device("meta"))
    generator = torch.Generator().manual_seed(0)

    class Elsewhere(views._Random):
        def __init__(self, generator):
            self.generator, self.device = generator, torch.device("meta")

        def uniform(self, *shape, low=0.0, high=1.0):
            return torch.empty(*shape, device=self.device)

        def normal(self, *shape):
            return torch.empty(*shape, device=self.device)

    monkeypatch.setattr(views, "_Random", Elsewhere)
    monkeypatch.setattr(views, "random_matrices", lambda count, _: torch.empty(count, 3, 3, device="meta"))
    drawn = views.draw(bank.landmarks, bank.root, generator)
    assert all(part.device.type == "meta" for part in drawn)


def test_training_on_a_device_goes_on_until_it_is_done(data, tmp_path, monkeypatch):
    """The companion for a GPU, at toy size on the CPU: stopped, told to come back, finished, a folder for `mega`."""
    small = ["loop.steps=4", "loop.warmup_steps=1", "loop.precision=32-true", "loop.threads=1", "data.batch=4"]
    given = [str(tmp_path), "--device", "cpu", "--tokenizer", str(data / "tokenizer"), "--minutes", "600"]
    given += ["--bank", str(data / "bank.pt"), "--validation", str(data / "bank.pt")]
    given += ["--regressor", *small, "model.width=64", "model.depth=1"]
    given += ["--masked", *small, "model.width=32", "model.heads=2", "model.encoder_depth=1", "model.decoder_depth=1",
              "model.prior.width=64", "model.prior.depth=1"]  # fmt: skip
    shard, calls = ViewTask.shard, []

    def slow(self, step, number, generator):
        calls.append(step)
        if step == 2 and calls.count(2) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return shard(self, step, number, generator)

    monkeypatch.setattr(ViewTask, "shard", slow)
    assert train_on_device.main(given) == train_on_device.AGAIN
    assert not (tmp_path / "model").exists()
    assert train_on_device.main(given) == 0
    assert checkpoint.load(tmp_path / "model").model.kind == "landmarks"
    assert calls.count(2) >= 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", stages.NAMES)
def test_stage_trains_on_a_gpu(name, data, tmp_path):
    task, settings = stages.make(name, data, {"accelerator": "cuda", "precision": "bf16-mixed"})
    if task.data_on_device:
        drawn = task.shard(0, 0, loop.step_generator(0, 0, 0, "cuda"))
        assert all(value.is_cuda for value in drawn.values())
    trained = loop.train(task, settings, tmp_path)
    assert all(value.isfinite().all() for value in trained.state_dict().values() if value.is_floating_point())
    assert next(trained.parameters()).is_cuda
