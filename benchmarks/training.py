"""Training speed of the stages: samples a second, and the share of the time that is spent waiting for data.

    python -m benchmarks.training image_reader [KEY=VALUE …] [--steps 60]
    python -m benchmarks.training --mocap MOCAP [--only image_reader masked …]

The first runs the first steps of one configuration in a temporary folder and reads what the training loop itself noted;
the first third is left out, in which workers start, kernels are chosen and small pictures are decoded for good. Waiting
is what the network waits for: on a GPU, work that was sent there and is not done yet does not count. Samples per second
of CPU time, of this process alone, say on a busy machine what the clock cannot.

The second does so for every stage of the bundled body, on data that it makes first (a bank of bodies, rendered
pictures; a minute or two), and prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mega_backend import checkpoint
from mega_backend.body import Body
from train import config, loop
from train.data import bank, synthetic_pictures
from train.data.bodies import BodySampler
from train.hmr import HmrConfig, MaskedTask, RegressorTask
from train.image_reader import ReaderConfig, ReaderTask
from train.images import ImageConfig, ImageTask
from train.mesh_vqvae import Tokenizer, TokenizerConfig
from train.pretrain import PretrainConfig, PretrainTask
from train.smpl_tokenizer import SmplTokenizer, SmplTokenizerConfig

BODIES, PICTURES = 4000, 200
"""What the table's data hold."""


class Speed(NamedTuple):
    """samples: of one step. waiting: share of the time."""

    samples: int
    samples_per_second: float
    samples_per_cpu_second: float
    waiting: float


def prepare(source: str, overrides: list[str]) -> tuple[loop.Task, loop.LoopConfig, int]:
    """Task, settings of the loop, and samples of a step of any stage's configuration."""
    stage = config.peek(source, overrides, "stage")
    if stage == "image_reader":
        settings = config.load(ReaderConfig, source, overrides)
        return ReaderTask(settings), settings.loop, settings.batch * settings.loop.shards
    if stage in ("image", "image_regressor"):
        settings = config.load(ImageConfig, source, overrides)
        return ImageTask(settings), settings.loop, settings.batch * settings.loop.shards
    if stage:
        settings = config.load(HmrConfig, source, overrides)
        task = {"regressor": RegressorTask, "masked": MaskedTask}[settings.stage](settings)
        return task, settings.loop, settings.data.batch * settings.loop.shards
    if config.peek(source, overrides, "bank"):
        settings = config.load(PretrainConfig, source, overrides)
        return PretrainTask(settings), settings.loop, settings.batch * settings.loop.shards
    if config.peek(source, overrides, "body"):
        settings = config.load(SmplTokenizerConfig, source, overrides)
        return SmplTokenizer(settings), settings.loop, settings.batch * settings.loop.shards
    settings = config.load(TokenizerConfig, source, overrides)
    return Tokenizer(settings, Body.bundled()), settings.loop, settings.batch * settings.loop.shards


def measure(source: str, overrides: list[str], steps: int) -> Speed:
    """Speed over the last two thirds of the steps."""
    every = max(1, steps // 3)
    changes = [f"loop.steps={3 * every}", f"loop.log_every={every}", "loop.warmup_steps=0"]
    changes += [f"loop.validate_every={10**9}", "loop.checkpoint_minutes=1000"]
    task, settings, samples = prepare(source, [*overrides, *changes])
    task.validate = dict  # held-out data are no part of the speed
    task.pictures = dict
    marks, begin = [], task.begin_step

    def begin_step(step: int) -> None:
        marks.append(time.process_time())
        begin(step)

    task.begin_step = begin_step
    with tempfile.TemporaryDirectory() as folder:
        loop.train(task, settings, Path(folder))
        events = EventAccumulator(folder + "/tensorboard")
        events.Reload()
        speed = [event.value for event in events.Scalars("time/steps_per_second")][1:]
        waiting = [event.value for event in events.Scalars("time/waiting_for_data")][1:]
    harmonic = len(speed) / sum(1 / value for value in speed)
    per_cpu_second = samples * (len(marks) - 1 - every) / (marks[-1] - marks[every])
    return Speed(samples, samples * harmonic, per_cpu_second, sum(waiting) / len(waiting))


def stages(folder: Path, mocap: Path, only: list[str]) -> dict[str, tuple[list[str], int]]:
    """{configuration: (overrides, steps)} of the stages that are asked for, over data made in a folder."""
    bodies = [f"bank={folder}/bank.pt", f"validation={folder}/bank.pt"]
    landmarks = [*(f"data.{setting}" for setting in bodies), "tokenizer=mega_backend/assets/default"]
    source = f"file: {folder}/pictures/people.npz, pictures: {folder}/pictures/pictures"
    pictures = [f"sources=[{{{source}, keep: true}}]", "validation=null"]
    table = {
        "tokenizer": ([f"mocap={mocap}"], 60),
        # The published size learns from 256 bodies a step.
        "pretrain": ([*bodies, "loop.shards=1", "batch=8"], 6),
        "regressor": (landmarks, 12),
        "masked": (landmarks, 24),
        "image_reader": (pictures, 60),
        "image_regressor": (pictures, 30),
        "image_masked": (pictures, 30),
        "image_anny": (pictures, 15),
    }
    chosen = {name: table[name] for name in only or table}
    made = {
        part for overrides, _ in chosen.values() for part in ("bank", "pictures") if any(part in o for o in overrides)
    }
    if "bank" in made:
        joints = Body.bundled().subset(torch.arange(1))
        drawn = bank.build(BodySampler(joints, "train", mocap), BODIES, torch.Generator().manual_seed(0))
        bank.tokenise(drawn, Body.bundled(), checkpoint.load().tokenizer).save(folder / "bank.pt")
    if "pictures" in made:
        options = ["--size", "112", "--samples", "2", "--poses", "512", "--mocap", str(mocap)]
        synthetic_pictures.main([str(folder / "pictures"), "-n", str(PICTURES), *options])
    return chosen


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("config", nargs="?")
    cli.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    cli.add_argument("--steps", type=int, help="60, or in the table what a stage needs for half a minute")
    cli.add_argument("--mocap", type=Path, help="without CONFIG: all stages, on data made of this motion capture")
    cli.add_argument("--only", nargs="+", default=[], metavar="CONFIG", help="of the table, these stages")
    args = cli.parse_intermixed_args()
    if args.config:
        found = measure(args.config, args.overrides, args.steps or 60)
        speed = f"{found.samples_per_second:.1f} samples/s"
        speed += f" ({found.samples_per_cpu_second:.1f} per second of CPU time)"
        print(f"{args.config}: {speed}, {found.waiting:.1%} of the time waiting for data")
        return
    if args.mocap is None:
        cli.error("name a configuration, or with --mocap a folder of motion capture to measure all stages")
    with tempfile.TemporaryDirectory() as folder:
        rows = ["| stage | samples a step | samples/s | per CPU second | waiting for data |", "|---|---|---|---|---|"]
        for name, (overrides, steps) in stages(Path(folder), args.mocap, args.only).items():
            found = measure(name, overrides, args.steps or steps)
            speeds = f"{found.samples_per_second:.1f} | {found.samples_per_cpu_second:.1f}"
            rows.append(f"| {name} | {found.samples} | {speeds} | {100 * found.waiting:.1f} % |")
            print(rows[-1], flush=True)
        print("\n".join(rows))


if __name__ == "__main__":
    main()
