"""Training speed of any stage: samples a second, and the share of the time that is spent waiting for data.

    python -m benchmarks.training image_reader [KEY=VALUE …] [--steps 60]

Runs the first steps of a configuration in a temporary folder and reads what the training loop itself noted; the first
third is left out, in which workers start, kernels are chosen and small pictures are decoded for good. Waiting is what
the network waits for: on a GPU, work that was sent there and is not done yet does not count.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mega_backend.body import Body
from train import config, loop
from train.hmr import HmrConfig, MaskedTask, RegressorTask
from train.image_reader import ReaderConfig, ReaderTask
from train.images import ImageConfig, ImageTask
from train.mesh_vqvae import Tokenizer, TokenizerConfig
from train.pretrain import PretrainConfig, PretrainTask
from train.smpl_tokenizer import SmplTokenizer, SmplTokenizerConfig


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


def measure(source: str, overrides: list[str], steps: int) -> dict[str, float]:
    """Samples a second and the share of time waiting for data over the last two thirds of the steps."""
    every = max(1, steps // 3)
    changes = [f"loop.steps={3 * every}", f"loop.log_every={every}", "loop.warmup_steps=0"]
    changes += [f"loop.validate_every={10**9}", "loop.checkpoint_minutes=1000"]
    task, settings, samples = prepare(source, [*overrides, *changes])
    task.validate = dict  # held-out data are no part of the speed
    task.pictures = dict
    with tempfile.TemporaryDirectory() as folder:
        loop.train(task, settings, Path(folder))
        events = EventAccumulator(folder + "/tensorboard")
        events.Reload()
        speed = [event.value for event in events.Scalars("time/steps_per_second")][1:]
        waiting = [event.value for event in events.Scalars("time/waiting_for_data")][1:]
    harmonic = len(speed) / sum(1 / value for value in speed)
    return {"samples_per_second": samples * harmonic, "waiting": sum(waiting) / len(waiting)}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("config")
    cli.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    cli.add_argument("--steps", type=int, default=60)
    args = cli.parse_intermixed_args()
    found = measure(args.config, args.overrides, args.steps)
    speed, waiting = found["samples_per_second"], found["waiting"]
    print(f"{args.config}: {speed:.1f} samples/s, {waiting:.1%} of the time waiting for data")


if __name__ == "__main__":
    main()
