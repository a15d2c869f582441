"""Training speed of the stages: samples a second, and the share of the time that is spent waiting for data.

    python -m benchmarks.training image_reader [KEY=VALUE …] [--steps 60]
    python -m benchmarks.training [--only image_reader mega_resnet50 …] [--mocap MOCAP]

The first runs the first steps of one configuration in a temporary folder and reads what the training loop itself noted;
the first third is left out, in which workers start, kernels are chosen and small pictures are decoded for good. Waiting
is what the network waits for: on a GPU, work that was sent there and is not done yet does not count. Samples per second
of CPU time, of this process alone, say on a busy machine what the clock cannot.

The second does so for every stage, of the bundled body and of the papers' models at their published sizes, on data that
it makes first (a bank of bodies, rendered pictures, stand-ins for licensed files; a minute or two), and prints a table.
Without motion capture all poses are synthetic.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks import stand_in
from mega_backend import checkpoint
from mega_backend.body import Body
from train import config, loop, smpl_tokenizer
from train.data import bank, synthetic_pictures
from train.data.bodies import BodySampler
from train.image_reader import ReaderConfig, ReaderTask
from train.images import ImageConfig, ImageTask
from train.landmarks import HmrConfig, MaskedTask, RegressorTask
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


def prepare(source: str, overrides: list[str], mocap: Path | None) -> tuple[loop.Task, loop.LoopConfig, int]:
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
    return (
        Tokenizer(settings, Body.bundled(), sampler(mocap or settings.mocap)),
        settings.loop,
        settings.batch * settings.loop.shards,
    )


def train(task: loop.Task, settings: loop.LoopConfig, folder: Path) -> list[float]:
    """Train without looking at held-out data; returns this process's CPU time at the beginning of every step."""
    task.validate = task.pictures = dict
    marks, begin = [], task.begin_step

    def begin_step(step: int) -> None:
        marks.append(time.process_time())
        begin(step)

    task.begin_step = begin_step
    loop.train(task, settings, folder)
    return marks


def measure(source: str, overrides: list[str], steps: int, mocap: Path | None = None) -> Speed:
    """Speed over the last two thirds of the steps."""
    every = max(1, steps // 3)
    changes = [f"loop.steps={3 * every}", f"loop.log_every={every}", "loop.warmup_steps=0"]
    changes += [f"loop.validate_every={10**9}", "loop.checkpoint_minutes=1000"]
    task, settings, samples = prepare(source, [*overrides, *changes], mocap)
    with tempfile.TemporaryDirectory() as folder:
        marks = train(task, settings, Path(folder))
        events = EventAccumulator(folder + "/tensorboard")
        events.Reload()
        speed = [event.value for event in events.Scalars("time/steps_per_second")][1:]
        waiting = [event.value for event in events.Scalars("time/waiting_for_data")][1:]
    del task
    gc.collect()  # a large model's memory is needed for the next one
    harmonic = len(speed) / sum(1 / value for value in speed)
    per_cpu_second = samples * (len(marks) - 1 - every) / (marks[-1] - marks[every])
    return Speed(samples, samples * harmonic, per_cpu_second, sum(waiting) / len(waiting))


# One shard of a step, and so few samples, as one processor takes; the published batches are for four GPUs.
LITTLE = ["loop.shards=1", "batch=2", "loop.workers=0"]
PUBLISHED = {
    "mesh_vqvae_smpl": ([], 9),
    "pretrain_smpl": (["loop.shards=1", "batch=8"], 6),
    "mega_resnet50": ([*LITTLE, "start=null"], 6),
    "mega_hrnet": ([*LITTLE, "start=null"], 6),
    "vqhps_resnet50": (LITTLE, 6),
    "vqhps_hrnet": (LITTLE, 6),
}
"""{configuration: (overrides, steps)} of the papers' models; ViT-H needs 16 GB and is left to the first form."""


def bundled(folder: Path) -> dict[str, tuple[list[str], int]]:
    """{configuration: (overrides, steps)} of the stages of the bundled body, over data in a folder."""
    bodies = [f"bank={folder}/bank.pt", f"validation={folder}/bank.pt"]
    landmarks = [*(f"data.{setting}" for setting in bodies), "tokenizer=default"]
    source = f"file: {folder}/pictures/people.npz, pictures: {folder}/pictures/pictures"
    pictures = [f"sources=[{{{source}, keep: true}}]", "validation=null"]
    on_tokens = [*pictures, "tokenizer=default"]
    behind_reader = [*on_tokens, "landmark_model=default"]
    return {
        "tokenizer": ([], 60),
        # The published size learns from 256 bodies a step.
        "pretrain": ([*bodies, "loop.shards=1", "batch=8"], 6),
        "regressor": (landmarks, 12),
        "masked": (landmarks, 24),
        "image_reader": (pictures, 60),
        "image_regressor": (behind_reader, 30),
        "image_masked": (behind_reader, 30),
        "image_anny": (on_tokens, 15),
    }


def make_data(folder: Path, mocap: Path | None, wanted: list[tuple[list[str], int]]) -> None:
    """What these stages of the bundled body read."""
    overrides = [word for words, _ in wanted for word in words]
    if any("bank.pt" in word for word in overrides):
        joints = Body.bundled().subset(torch.arange(1))
        drawn = bank.build(sampler(mocap)(joints, "train"), BODIES, torch.Generator().manual_seed(0))
        bank.tokenise(drawn, Body.bundled(), checkpoint.load().tokenizer).save(folder / "bank.pt")
    if any("pictures" in word for word in overrides):
        options = ["--size", "112", "--samples", "2", "--poses", "512"]
        options += ["--mocap", str(mocap)] if mocap else []
        synthetic_pictures.main([str(folder / "pictures"), "-n", str(PICTURES), *options])


def sampler(mocap: Path | None) -> Callable[[Body, str], BodySampler]:
    """(body, split) → bodies with poses of the motion capture, or synthetic ones without any."""
    if mocap is None:
        return functools.partial(BodySampler, folder=None, weights=(0.0, 0.0, 1.0), bank=512)
    return functools.partial(BodySampler, folder=mocap)


def make_stand_ins(folder: Path) -> None:
    """What the published configurations read, run in a folder: stand-ins, an untrained tokenizer, random tokens."""
    stand_in.write(folder)
    settings = config.load(SmplTokenizerConfig, "mesh_vqvae_smpl")
    with contextlib.chdir(folder):
        task = SmplTokenizer(settings)
        smpl_tokenizer.export(task, folder / "models" / "smpl-tokenizer", {})
        (folder / "data" / "tokens").mkdir()
        tokens = torch.randint(task.model.code_count, (4000, task.model.token_count), dtype=torch.int16)
        for part in ("train", "val"):
            torch.save({"tokens": tokens}, folder / "data" / "tokens" / f"{part}.pt")


def table(only: list[str], mocap: Path | None, steps: int | None) -> list[str]:
    """Markdown rows of these stages, all where none is named, printed as they come."""
    rows = ["| stage | samples a step | samples/s | per CPU second | waiting for data |", "|---|---|---|---|---|"]

    def note(name: str, overrides: list[str], usual: int) -> None:
        found = measure(name, overrides, steps or usual, mocap)
        speeds = f"{found.samples_per_second:.3g} | {found.samples_per_cpu_second:.3g}"
        rows.append(f"| {name} | {found.samples} | {speeds} | {100 * found.waiting:.1f} % |")
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        own = {name: stage for name, stage in bundled(folder).items() if name in only or not only}
        published = {name: stage for name, stage in PUBLISHED.items() if name in only or not only}
        make_data(folder, mocap, list(own.values()))
        for name, stage in own.items():
            note(name, *stage)
        if published:
            make_stand_ins(folder / "stand_in")
        for name, stage in published.items():
            with contextlib.chdir(folder / "stand_in"):
                note(name, *stage)
    return rows


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("config", nargs="?")
    cli.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    cli.add_argument("--steps", type=int, help="60, or in the table what a stage needs for half a minute")
    cli.add_argument("--mocap", type=Path, help="motion capture that bodies are posed by; without: synthetic poses")
    cli.add_argument("--only", nargs="+", default=[], metavar="CONFIG", help="of the table, these stages")
    args = cli.parse_intermixed_args()
    mocap = args.mocap and args.mocap.resolve()
    if args.config:
        found = measure(args.config, args.overrides, args.steps or 60, mocap)
        speed = f"{found.samples_per_second:.1f} samples/s"
        speed += f" ({found.samples_per_cpu_second:.1f} per second of CPU time)"
        print(f"{args.config}: {speed}, {found.waiting:.1%} of the time waiting for data")
        return
    known = [*bundled(Path()), *PUBLISHED]
    if unknown := set(args.only) - set(known):
        cli.error(f"--only knows {', '.join(known)}, not {', '.join(sorted(unknown))}")
    print("\n".join(table(args.only, mocap, args.steps)))


if __name__ == "__main__":
    main()
