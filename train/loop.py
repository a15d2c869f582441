"""The one training loop: every stage is a `Task`, everything around it is here.

Nothing random carries state from step to step: the data of a step are a function of (seed, step, shard), and the
global generators are reseeded before every shard from (seed, step, shard). A run that is killed and resumed is
therefore the run that was not, bit for bit. A step's batch is made of `shards` independent parts that are dealt out to
the processes. Each goes through the network on its own, whichever process has it, and a step takes the mean of their
gradients and of what they made of the buffers (statistics of batch normalisation, moving codebooks): any number of
processes does what one would.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train.config import Config, UserError

CHECKPOINT = "checkpoint.pt"
"""The file of a run's folder that holds all of its state."""
Batch = dict[str, Tensor]
AnyTask = TypeVar("AnyTask", bound="Task")


class LoopConfig(Config):
    """How long, how fast, on what."""

    steps: int = Field(gt=0, description="optimizer steps of the whole run")
    minutes: float | None = Field(
        None, gt=0, description="end after so long instead: for a borrowed machine; what comes out is not repeatable"
    )
    seed: int = 0
    shards: int = Field(1, gt=0, description="independent parts of a batch; a multiple of the number of processes")
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(0.0, ge=0, description="where the cosine ends")
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; none: unlimited")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="moving average of the weights; none: no average")
    accelerator: str = "auto"
    devices: int = Field(1, gt=0, description="processes started here; torchrun says so itself")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    threads: int | None = Field(None, gt=0, description="CPU threads of one process")
    workers: int = Field(0, ge=0, description="processes that prepare data; 0: the training process does")
    log_every: int = Field(50, gt=0)
    validate_every: int = Field(2000, gt=0)
    checkpoint_minutes: float = Field(3.0, gt=0)


class Task(nn.Module):
    """What is trained: the module, its data, its loss.

    `forward(batch)` returns the loss and named scalars; only parameters with `requires_grad` are optimised.
    """

    data_on_device = False
    """Whether `shard` draws on the device of its generator, and so beside the network; else on the CPU, in workers."""

    def shard(self, step: int, shard: int, generator: torch.Generator) -> Batch:
        """Data of one shard of one step: a function of the arguments only."""
        raise TypeError(f"{type(self).__name__} must define shard()")

    def begin_step(self, step: int) -> None:
        """What changes the network itself at a step, once and before any shard of it; the same in all processes."""

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        raise TypeError(f"{type(self).__name__} must define forward()")

    def validate(self) -> dict[str, float]:
        """Scalars of the averaged weights on held-out data."""
        return {}

    def pictures(self) -> dict[str, np.ndarray]:
        """Named pictures (H,W,3) uint8 of the averaged weights."""
        return {}


def learning_rate(step: int, config: LoopConfig, done: float | None = None) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to `final_learning_rate` at the last step.

    done: the share of the run that is over, where the clock says so and not the number of steps.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps) if done is None else done
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine


def step_generator(seed: int, step: int, shard: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on nothing but its arguments (SeedSequence mixes them well)."""
    return torch.Generator(device).manual_seed(_mix(seed, step, shard))


def seeded(make: Callable[[Any], AnyTask], config: Any) -> AnyTask:
    """The task `make(config)` with initial weights that depend on `config.loop.seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        return make(config)


class Ema:
    """Exponential moving average of a module's parameters; buffers are taken as they are.

    The decay is warmed up, min(decay, (1 + n) / (10 + n)), so that the first steps are forgotten.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.average = {k: p.detach().clone() for k, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = dict(module.named_parameters())
        names = list(self.average)
        torch._foreach_lerp_([self.average[n] for n in names], [parameters[n].detach() for n in names], 1 - decay)

    @contextlib.contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module computes with the averaged weights inside the block."""
        self._exchange(module)
        try:
            yield
        finally:
            self._exchange(module)

    def _exchange(self, module: nn.Module) -> None:
        """Average and parameters change places, without a copy: of a large model a third would not fit."""
        for name, parameter in module.named_parameters():
            if name in self.average:
                parameter.data, self.average[name] = self.average[name], parameter.data

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        _copy(self.average, state["average"])


def train(task: Task, config: LoopConfig, folder: Path) -> Task:
    """Train `task` for `config.steps` steps or `config.minutes`, resuming from `folder` if it holds a checkpoint.

    Returns the task on its device with the averaged weights in place. SIGINT and SIGTERM save a checkpoint and then
    raise KeyboardInterrupt.

    Raises:
        UserError: the shards cannot be dealt out to the processes, or the folder holds a run of another model.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    fabric = _fabric(config)
    fabric.launch()
    if fabric.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if config.shards % fabric.world_size:
        raise UserError(
            f"loop.shards={config.shards} is not a multiple of the {fabric.world_size} processes: make it one."
        )
    folder.mkdir(parents=True, exist_ok=True)

    parameters = [p for p in task.parameters() if p.requires_grad]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    optimizer = kind(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    wrapped, optimizer = fabric.setup(_Unrounded(task), optimizer)
    ema = Ema(task, config.ema_decay) if config.ema_decay else None
    start, over = _resume(folder, task, optimizer, ema)
    clock = _Clock(config.minutes, over)
    # A run that the clock has ended is as finished as one that has made its steps.
    steps = range(start, start if clock.share() == 1 else config.steps)

    writer = SummaryWriter(str(folder / "tensorboard")) if fabric.is_global_zero else None
    shards = range(fabric.global_rank, config.shards, fabric.world_size)
    batches = _batches(task, config, fabric, shards, steps)
    bar = tqdm(steps, initial=start, total=config.steps, desc=folder.name, disable=writer is None)
    saved = time.monotonic()
    waited = trained = 0.0
    interrupted = _Interrupted()
    with interrupted:
        for step in bar:
            mark = time.monotonic()
            parts = fabric.to_device(next(batches))
            waited += time.monotonic() - mark
            mark = time.monotonic()
            over = clock.share()
            if config.minutes and fabric.world_size > 1:
                over = fabric.broadcast(over)  # clocks differ, and all must stop after the same step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config, over)
            task.begin_step(step)
            scalars = _gradients(task, wrapped, fabric, config, step, dict(zip(shards, parts, strict=True)))
            if config.clip_norm:
                scalars["gradient_norm"] = fabric.clip_gradients(wrapped, optimizer, max_norm=config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if ema:
                ema.update(task)
            trained += time.monotonic() - mark

            done = step + 1
            last = done == config.steps or (over is not None and over >= 1)
            if writer and done % config.log_every == 0:
                values = {k: float(v) for k, v in scalars.items()}
                bar.set_postfix({k: f"{v:.4g}" for k, v in list(values.items())[:4]})
                _log(writer, done, values, waited / (waited + trained), config.log_every / (waited + trained))
                waited = trained = 0.0
            if writer and (done % config.validate_every == 0 or last):
                _validate(task, ema, writer, done)
            if interrupted or last or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                if fabric.is_global_zero:
                    _save(folder, done, clock.share(), task, optimizer, ema)
                saved = time.monotonic()
            if interrupted:
                raise KeyboardInterrupt(f"stopped after step {done}; the same command goes on from there")
            if last:
                break
    if writer:
        writer.close()
    if ema:
        _copy(dict(task.named_parameters()), ema.average)
    if fabric.world_size > 1:
        # Nobody leaves while another still validates or saves.
        fabric.barrier()
        atexit.register(_hang_up)
    return task.eval()


def _gradients(
    task: Task, wrapped: nn.Module, fabric: Fabric, config: LoopConfig, step: int, parts: dict[int, Batch]
) -> dict[str, Tensor | float]:
    """Mean gradients, and buffers, of all shards of a step; returns the means of the scalars of this process's shards.

    wrapped: the task as Fabric wraps it. parts: {number of the shard: its data} of this process.
    """
    buffers = _Buffers(task, config.shards, fabric)
    seen, last = [], max(parts)
    for shard, batch in parts.items():
        torch.manual_seed(_mix(config.seed, step, 2**20 + shard))
        with fabric.no_backward_sync(wrapped, enabled=shard != last), buffers.one_shard():
            loss, scalars = wrapped(_Parcel(batch))
            fabric.backward(loss * (len(parts) ** -1))
        seen.append({"loss": loss.detach(), **scalars})
    buffers.put_mean()
    return {name: sum(_number(values[name]) for values in seen) / len(seen) for name in seen[0]}


def _log(writer: SummaryWriter, step: int, scalars: dict[str, float], waiting: float, speed: float) -> None:
    for name, value in scalars.items():
        writer.add_scalar(f"train/{name}", value, step)
    writer.add_scalar("time/waiting_for_data", waiting, step)
    writer.add_scalar("time/steps_per_second", speed, step)


class _Clock:
    """How much of a run that ends by the clock is over; over: after earlier parts of it."""

    def __init__(self, minutes: float | None, over: float | None) -> None:
        self._seconds = minutes and 60 * minutes
        self._begun = time.monotonic() - (over or 0.0) * (self._seconds or 0.0)

    def share(self) -> float | None:
        """At most 1; None where the number of steps decides."""
        return self._seconds and min(1.0, (time.monotonic() - self._begun) / self._seconds)


def _hang_up() -> None:
    """Close the connections to the other processes before the interpreter takes them apart, which at times aborts."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Parcel:
    """A batch that Fabric does not look into."""

    def __init__(self, batch: Batch):
        self.batch = batch


class _Unrounded(nn.Module):
    """The task as Fabric sees it: with mixed precision it would round every input, truth included, to 16 bits."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task

    def forward(self, parcel: _Parcel) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task(parcel.batch)


class _Shards(Dataset):
    """step → these shards of its data."""

    def __init__(self, task: Task, seed: int, shards: range, device: torch.device | str = "cpu"):
        self.task, self.seed, self.shards, self.device = task, seed, shards, device

    def __getitem__(self, step: int) -> list[Batch]:
        return [self.task.shard(step, n, step_generator(self.seed, step, n, self.device)) for n in self.shards]


def _batches(task: Task, config: LoopConfig, fabric: Fabric, shards: range, steps: range) -> Iterator[list[Batch]]:
    """This process's shards of these steps."""
    if task.data_on_device and (fabric.device.type != "cpu" or not config.workers):
        own = _Shards(task, config.seed, shards, fabric.device)
        return (own[step] for step in steps)
    pin = fabric.device.type == "cuda" and config.workers > 0
    return iter(
        DataLoader(
            _Shards(task, config.seed, shards),
            batch_size=None,
            sampler=steps,
            num_workers=config.workers,
            pin_memory=pin,
            worker_init_fn=_leave_interrupts,
        )
    )


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C goes to every process of a terminal: workers go on, so that the loop can finish its step and save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fabric(config: LoopConfig) -> Fabric:
    options: dict[str, Any] = {}
    # Under torchrun, it says how many processes there are.
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    world = int(os.environ.get("WORLD_SIZE", devices))
    if world > 1:
        options["num_nodes"] = max(1, world // devices)
        # Not every parameter is used in every step (tokens may all be masked); buffers are the loop's own care.
        options["strategy"] = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return Fabric(accelerator=config.accelerator, devices=devices, precision=config.precision, **options)


def is_first() -> bool:
    """Whether this process is the first, or the only one, of a run: what is written once is written by it."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


class _Buffers:
    """Lets every shard of a step begin with the same buffers, and leaves the mean of what the shards made of them."""

    def __init__(self, task: Task, shards: int, fabric: Fabric):
        self._fabric, self._shards = fabric, shards
        self._live = dict(task.named_buffers()) if shards > 1 else {}
        self._before = {name: value.clone() for name, value in self._live.items()}
        self._sums: dict[str, Tensor] = {}
        self._changed: set[str] = set()
        # Batch normalisation writes its statistics without counting that as a change.
        norms = [
            (name, part) for name, part in task.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)
        ]
        self._silent = {f"{name}.{kind}" for name, part in norms if part.training for kind, _ in part.named_buffers()}

    @contextlib.contextmanager
    def one_shard(self) -> Iterator[None]:
        for name in self._changed:
            self._live[name].copy_(self._before[name])
        versions = {name: value._version for name, value in self._live.items()}
        yield
        for name, version in versions.items():
            value = self._live[name]
            if value._version != version or name in self._silent:
                self._changed.add(name)
                if value.is_floating_point():
                    self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    @torch.no_grad()
    def put_mean(self) -> None:
        """Of whole numbers (counts of steps) every shard has made the same."""
        for name, total in self._sums.items():
            self._live[name].copy_(self._fabric.all_reduce(total, reduce_op="sum") / self._shards)


def _number(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value


def _validate(task: Task, ema: Ema | None, writer: SummaryWriter, step: int) -> None:
    """Held-out scalars and pictures of the averaged weights, without disturbing the run's random state."""
    with torch.random.fork_rng(), torch.no_grad(), ema.applied(task) if ema else contextlib.nullcontext():
        task.eval()
        scalars, pictures = task.validate(), task.pictures()
        task.train()
    for name, value in scalars.items():
        writer.add_scalar(f"validation/{name}", value, step)
    for name, picture in pictures.items():
        writer.add_image(f"validation/{name}", picture, step, dataformats="HWC")
    if scalars:
        tqdm.write(f"step {step}: " + "  ".join(f"{k} {v:.4g}" for k, v in scalars.items()))
    writer.flush()


def _save(
    folder: Path, step: int, over: float | None, task: Task, optimizer: torch.optim.Optimizer, ema: Ema | None
) -> None:
    """Write the checkpoint whole or not at all."""
    state = {
        "step": step,
        "over": over,
        "task": task.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema and ema.state_dict(),
    }
    partial = folder / f"{CHECKPOINT}.partial"
    torch.save(state, partial)
    os.replace(partial, folder / CHECKPOINT)


def _resume(folder: Path, task: Task, optimizer: torch.optim.Optimizer, ema: Ema | None) -> tuple[int, float | None]:
    """Steps that are done, and the share of a run that ends by the clock."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0, None
    state = read_checkpoint(folder)
    try:
        task.load_state_dict(state["task"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:  # other names, shapes or numbers of tensors
        raise UserError(
            f"{path} is of a model of other settings: go on with those it was begun with, or in a new folder."
        ) from error
    if ema:
        if not state["ema"]:
            raise UserError(
                f"{path} holds no averaged weights: train it on without loop.ema_decay, or in a new folder."
            )
        ema.load_state_dict(state["ema"])
    # What is on the CPU already is taken over as it is: let go of the file, which the next checkpoint replaces.
    for values in optimizer.state.values():
        values.update({name: value.clone() for name, value in values.items() if isinstance(value, Tensor)})
    return state["step"], state.get("over")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What a run has saved; tensors are read from the file as they are looked at, so that none lies in memory twice.

    Raises:
        UserError: the folder holds no checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{folder} holds no {CHECKPOINT}: give the folder of a run that has begun")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


class _Interrupted:
    """True once SIGINT or SIGTERM has come; the handlers live as long as the block."""

    def __init__(self) -> None:
        self._come = False

    def __bool__(self) -> bool:
        return self._come

    def _note(self, *_: object) -> None:
        self._come = True

    def __enter__(self) -> None:
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@torch.no_grad()
def _copy(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    for name, value in source.items():
        target[name].copy_(value)
