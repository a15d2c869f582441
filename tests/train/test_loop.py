"""The training loop: a killed and resumed run is the same run; two processes are one with the same batch."""

import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from train import loop
from train.config import Config, ConfigError, load


class Line(loop.Task):
    """Fits y = 3x - 1 with a small network that has dropout, so that random state matters."""

    def __init__(self, dropout: float = 0.1, stop_at: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.stop_at = stop_at

    def shard(self, step, shard, generator):
        if step == self.stop_at:
            raise RuntimeError("power cut")
        x = torch.randn(8, 1, generator=generator)
        return {"x": x, "y": 3 * x - 1}

    def forward(self, batch):
        loss = nn.functional.mse_loss(self.network(batch["x"]), batch["y"])
        return loss, {"twice": 2 * loss.detach()}

    def validate(self):
        return {"constant": float(torch.rand(()))}


def config(**changes) -> loop.LoopConfig:
    base = {
        "steps": 60,
        "learning_rate": 0.02,
        "warmup_steps": 5,
        "clip_norm": 1.0,
        "ema_decay": 0.9,
        "accelerator": "cpu",
    }
    return loop.LoopConfig(**{**base, "validate_every": 20, "checkpoint_minutes": 1e-9, **changes})


def weights(task: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in task.parameters()])


def test_learning_rate_warms_up_then_falls_to_its_end():
    settings = config(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [loop.learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_a_run_may_end_by_the_clock(tmp_path):
    """On a borrowed machine the time is known and the number of steps is not: the cosine ends with it."""
    settings = config(steps=10**9, minutes=0.02, learning_rate=1.0)
    assert loop.learning_rate(50, settings, 0.5) == pytest.approx(0.5)
    assert loop.learning_rate(50, settings, 1.0) == pytest.approx(0.0)
    loop.train(Line(), settings, tmp_path)
    done = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < done < 10**9
    # Finished is finished: the same command trains no further.
    loop.train(Line(stop_at=done), settings, tmp_path)


def test_it_learns(tmp_path):
    task = loop.train(Line(dropout=0.0), config(steps=400), tmp_path)
    x = torch.linspace(-1, 1, 9)[:, None]
    assert (task.network(x) - (3 * x - 1)).abs().max() < 0.1


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_and_resumed_run_equals_one_that_was_not(tmp_path, workers):
    whole = loop.train(Line(), config(workers=workers), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        loop.train(Line(stop_at=33), config(workers=workers), tmp_path / "cut")
    resumed = loop.train(Line(), config(workers=workers), tmp_path / "cut")
    assert torch.equal(weights(whole), weights(resumed))


SLOW_DATA = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_loop import Line, config
from train import command, loop
class Slow(Line):
    def shard(self, step, shard, generator):
        time.sleep(0.3 if step else 0)
        return super().shard(step, shard, generator)
settings = config(workers=1, checkpoint_minutes=1000, log_every=1)
command.run(lambda: loop.train(Slow(), settings, Path(sys.argv[2])) and None)
"""


def test_an_interrupt_from_the_terminal_saves_and_says_so(tmp_path):
    """It reaches the workers as well; while the loop waits for their data, too."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW_DATA)
    here = Path(__file__).parent
    running = subprocess.Popen(
        [sys.executable, str(script), str(here), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(here.parent.parent), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    said = ""
    while "| 2/60" not in said:
        said += running.stderr.read(1)
        assert running.poll() is None, said
    os.killpg(running.pid, signal.SIGINT)
    said += running.communicate(timeout=300)[1]
    assert running.returncode == 130 and "Traceback" not in said, said
    done = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert f"stopped after step {done}; the same command goes on from there" in said and 2 <= done < 60


def test_finished_run_is_not_trained_again(tmp_path):
    first = loop.train(Line(), config(), tmp_path)
    assert torch.equal(weights(first), weights(loop.train(Line(), config(), tmp_path)))


def test_a_folder_of_another_model_is_named(tmp_path):
    loop.train(Line(), config(steps=2), tmp_path)
    other = Line()
    other.network = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of a model of other settings.*new folder"):
        loop.train(other, config(steps=2), tmp_path)


def test_average_follows_the_closed_form():
    module = nn.Linear(1, 1, bias=False)
    ema = loop.Ema(module, decay=0.5)
    expected = module.weight.item()
    for n in range(1, 6):
        with torch.no_grad():
            module.weight += 1
        ema.update(module)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * module.weight.item()
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)
    own = module.weight.item()
    with ema.applied(module):
        assert module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert module.weight.item() == own


TWO = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_loop import Line, config, weights
from train import loop
settings = config(shards=2, devices=2, steps=30)
task = loop.train(Line(dropout=0.0), settings, Path(sys.argv[2]))
if torch.distributed.get_rank() == 1:
    torch.save(weights(task), Path(sys.argv[2]) / "weights.pt")
"""


def test_two_processes_equal_one_with_the_same_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent.parent), str(here)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(here),
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    one = loop.train(Line(dropout=0.0), config(shards=2, steps=30), tmp_path / "one")
    two = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert torch.allclose(weights(one), two, atol=1e-5)


def test_mixed_precision_rounds_no_data(tmp_path):
    seen = []

    class Watching(Line):
        def forward(self, batch):
            seen.append((batch["y"].dtype, self.network[0](batch["x"]).dtype))
            return super().forward(batch)

    loop.train(Watching(), config(steps=2, precision="bf16-mixed"), tmp_path)
    assert seen == [(torch.float32, torch.bfloat16)] * 2


def test_shards_that_cannot_be_dealt_out_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Fabric, "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match="multiple"):
        loop.train(Line(), config(shards=3), tmp_path)


class Settings(Config):
    loop: loop.LoopConfig
    width: int = 8


def test_configuration_overrides_and_errors(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("width: 4\nloop:\n  steps: 10\n")
    settings = load(Settings, path, ["loop.steps=20", "loop.learning_rate=5e-4", "width=16"])
    assert (settings.loop.steps, settings.width) == (20, 16)
    assert math.isclose(settings.loop.learning_rate, 5e-4)
    for overrides, words in (
        (["loop.stepz=1"], "stepz"),
        (["loop.steps=many"], "loop.steps"),
        (["width"], "key.subkey=value"),
        (["width.deep=3"], "single value"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(Settings, path, overrides)
    with pytest.raises(ConfigError, match="No configuration"):
        load(Settings, tmp_path / "missing.yaml")
