"""What must hold of every stage: killed and resumed it is the same run, two processes are one, a handful is learnt."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import stages
import torch

from train import loop

TWO = """
import os, sys, torch
from pathlib import Path
import stages
from train import loop
data, out, shards = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for name in stages.NAMES:
    task, settings = stages.make(name, data, {"shards": shards, "devices": 2}, batch=2)
    loop.train(task, settings, out / name)
    if os.environ["RANK"] == "1":
        torch.save(stages.state(task), out / f"{name}.pt")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stages.write(tmp_path_factory.mktemp("stages"))


def run(name, data, folder, **settings):
    task, config = stages.make(name, data, settings, batch=2)
    return loop.train(task, config, folder)


@pytest.mark.parametrize("name", stages.NAMES)
def test_killed_and_resumed_is_the_same_run(name, data, tmp_path):
    """Weights, their average, optimizer, statistics of batch normalisation, codebooks: bit for bit."""
    run(name, data, tmp_path / "whole")
    task, config = stages.make(name, data, batch=2)
    shard = task.shard

    def cut(step, number, generator):
        if step == 2:
            raise RuntimeError("power cut")
        return shard(step, number, generator)

    task.shard = cut
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(task, config, tmp_path / "cut")
    run(name, data, tmp_path / "cut")
    whole, cut = (torch.load(tmp_path / kind / "checkpoint.pt", weights_only=True) for kind in ("whole", "cut"))
    _equal(whole, cut, name)


def _equal(first, second, where):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            _equal(first[key], second[key], f"{where}.{key}")
    else:
        assert first == second, where


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_batch(data, tmp_path):
    """Every stage, under torchrun with gloo. (Adam makes steps of rounding errors: of two shards there are none.)"""
    shards = 2
    here = Path(__file__).parent
    script = tmp_path / "two.py"
    script.write_text(TWO)
    path = os.pathsep.join([str(here.parent.parent), str(here)])
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [sys.executable, *command, str(data), str(tmp_path), str(shards)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    different = []
    for name in stages.NAMES:
        one = stages.state(run(name, data, tmp_path / "one" / name, shards=shards))
        two = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for key, value in one.items():
            if not torch.allclose(value.double(), two[key].double(), atol=1e-5, rtol=1e-5):
                different.append(f"{name}: {key}")
    assert not different


# Steps and learning rate, the loss that must come near zero, and how near.
HANDFUL = {
    "tokenizer": (120, 1e-2, "distance_mm", 8.0),
    "smpl_tokenizer": (250, 2e-2, "distance_mm", 10.0),
    "pretrain": (60, 1e-2, "tokens", 0.05),
    "regressor": (250, 5e-3, "latent", 0.01),
    "masked": (200, 1e-2, "tokens", 0.05),
    "image_mega": (60, 5e-3, "token", 0.05),
    "image_vqhps": (60, 5e-3, "token", 0.05),
    "image_reader": (120, 1e-2, "landmark", 0.02),
    "image_regressor": (60, 5e-3, "latent", 0.02),
    "image_masked": (100, 1e-2, "token", 0.05),
}


@pytest.mark.parametrize("name", stages.NAMES)
def test_a_handful_is_learnt_to_near_zero_loss(name, data):
    """Two samples, always the same; some tokens known, so that two bodies can be told apart."""
    steps, rate, loss_name, bound = HANDFUL[name]
    task, _ = stages.make(name, data, batch=2)
    for module in task.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=rate)
    batch = task.shard(0, 0, loop.step_generator(0, 0, 0))
    if "visible" in batch:
        batch["visible"][:, ::3] = True
    first = None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        task.begin_step(step)
        torch.manual_seed(0)  # the same masks every time
        loss, scalars = task(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = float(torch.as_tensor(scalars[loss_name]).detach())
        first = first or last
    assert last < bound, f"from {first}"
