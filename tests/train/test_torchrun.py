"""Two processes by the documented command, `torchrun --nproc-per-node 2 -m train.STAGE …`, talking through gloo."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import landmark_fixture
import pytest
import torch
import yaml
from released_fixture import command
from smpl_fixture import write_connections, write_models
from test_motions import write_motion

from mega_backend import checkpoint
from train.data.bank import tokenise

ROOT = Path(__file__).parents[2]
STEPS = 80
LOOP = {"steps": STEPS, "shards": 2, "learning_rate": 2e-3, "warmup_steps": 2, "ema_decay": 0.9, "clip_norm": 1.0,
        "threads": 1, "accelerator": "cpu", "checkpoint_minutes": 1e-9}  # fmt: skip


def torchrun(folder: Path, *arguments) -> subprocess.Popen:
    """Begin it; what it says goes to FOLDER/said, since a pipe that nobody reads would stop the processes."""
    words = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node", "2", "-m", *arguments]
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            [str(word) for word in words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=said,
            stderr=said,
        )


def finish(folder: Path, running: subprocess.Popen) -> None:
    assert running.wait(timeout=900) == 0, (folder / "said").read_text()[-3000:]


def saved(run: Path) -> dict:
    return torch.load(run / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    """A configuration of a tiny model over a tiny bank."""
    folder = tmp_path_factory.mktemp("pretraining")
    body, *_ = landmark_fixture.posed(1)
    tokenizer = landmark_fixture.tokenizer(folder / "tokenizer")
    tokenise(landmark_fixture.bodies(16), body, tokenizer).save(folder / "bank.pt")
    settings = {
        "loop": LOOP,
        "bank": str(folder / "bank.pt"),
        "validation": str(folder / "bank.pt"),
        "batch": 4,
        "code_count": landmark_fixture.CODES,
        "model": {"width": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return folder / "tiny.yaml"


def test_killed_and_resumed_under_torchrun_it_is_the_run_of_one_process(pretraining, tmp_path):
    """Weights, their average and the optimizer's state to 1e-5, after both processes died at any moment."""
    words = ["train.pretrain", pretraining, "--run-folder", tmp_path / "two"]
    running = torchrun(tmp_path, *words)
    late = time.monotonic() + 900
    while not (tmp_path / "two" / "checkpoint.pt").exists():
        assert running.poll() is None and time.monotonic() < late, (tmp_path / "said").read_text()[-3000:]
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert 0 < saved(tmp_path / "two")["step"] < STEPS
    finish(tmp_path, torchrun(tmp_path, *words))
    assert command("train.pretrain", pretraining, "--run", tmp_path / "one") == 0
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert one["step"] == two["step"] == STEPS
    first, second = (tensors(run) for run in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value.double(), second[name].double(), atol=1e-5, rtol=1e-5), name


def tensors(run):
    found = {**run["task"], **{f"average.{name}": value for name, value in run["ema"]["average"].items()}}
    for number, moments in run["optimizer"]["state"].items():
        found |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    return found


@pytest.mark.slow
def test_one_of_two_processes_writes_the_model_folder(tmp_path):
    models, _ = write_models(tmp_path / "models")
    for number in range(3):
        write_motion(tmp_path / "motions" / f"{number}.npz", frames=8, seed=number)
    write_connections(tmp_path / "connections")
    settings = {
        "loop": {**LOOP, "steps": 3, "optimizer": "adam"},
        "body": {"kind": "smpl", "models": models},
        "motions": str(tmp_path / "motions"),
        "connections": str(tmp_path / "connections"),
        "held_out_every": 3,
        "levels": 1,
        "codes": 16,
        "batch": 4,
        "validation_bodies": 4,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    finish(tmp_path, torchrun(tmp_path, "train.mesh_vqvae", tmp_path / "tiny.yaml", "--run-folder", tmp_path / "run"))
    written = checkpoint.load(tmp_path / "run" / "final").tokenizer.state_dict()
    trained = saved(tmp_path / "run")["ema"]["average"]
    assert all(torch.equal(written[name.removeprefix("model.")], value) for name, value in trained.items())
