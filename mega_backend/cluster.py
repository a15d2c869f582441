"""Beyond one machine, on Ray (extra `cluster`): the server as a Ray Serve application, batches of files on Ray Data.

    serve run mega_backend.cluster:build model=default device=cuda max_replicas=8 token_file=/run/secrets/mega
    mega batch PICTURES -o RESULTS --cluster auto --device cuda

The application is that of `mega serve`, one replica for each GPU; clients need its URL and token alone.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from mega_backend.batch import BatchError, FileRecovery, Item, Outcome, Settings
from mega_backend.quiet import standard_error_without

_LOG_LEVEL_SET = re.compile(rb"\[.* Set ray log level ")
RETRIES = 2
"""So often a file is tried again whose worker died."""


class Deployment(BaseModel):
    """Arguments of `build`, as `serve run` or a Serve config file gives them.

    Attributes:
        model, device: as for `mega serve`.
        token_file: where every replica finds the token; without it MEGA_TOKEN in the replica's environment.
        min_replicas, max_replicas: bounds of autoscaling.
        ongoing: requests for each replica that autoscaling aims at; they share its device.
        up_seconds, down_seconds: of more, or fewer, requests than that, before a replica is added or goes.
        grace: seconds in which a replica that is to go may finish what it is at: a video, at worst.
        cpus, gpus: that a replica takes; gpus defaults to 1 on CUDA devices.
    """

    model: str = "default"
    device: str = "cuda"
    token_file: str | None = None
    min_replicas: int = 1
    max_replicas: int = 4
    ongoing: float = 8
    up_seconds: float = 30
    down_seconds: float = 600
    grace: float = 3600
    cpus: float = 2
    gpus: float | None = None


def build(arguments: Deployment, load: Callable[[], Any] | None = None) -> Any:
    """The Serve application. `load` gives another recoverer than that of `arguments.model` (for tests)."""
    from ray import serve

    from mega_backend.service.limits import Limits

    limits = Limits()
    gpus = arguments.gpus if arguments.gpus is not None else float(arguments.device.startswith("cuda"))

    def make() -> Any:
        return replica(arguments, load)

    deployment = serve.deployment(
        name="mega",
        # The application bounds and refuses by itself, with sentences; Serve must not queue on top of it.
        max_ongoing_requests=limits.active + limits.waiting,
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": arguments.ongoing,
            "upscale_delay_s": arguments.up_seconds,
            "downscale_delay_s": arguments.down_seconds,
            # Requests are counted every ten seconds; Ray wants the mean to be over more than that.
            "look_back_period_s": max(arguments.up_seconds, 10.1),
        },
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": gpus},
        graceful_shutdown_timeout_s=arguments.grace,
    )
    return deployment(serve.ingress(make)()).bind()


def replica(arguments: Deployment, load: Callable[[], Any] | None = None) -> Any:
    """The ASGI application of one replica, its model loaded."""
    from mega_backend.batching import Batcher
    from mega_backend.server import create_app, read_token, sleep_while_waiting
    from mega_backend.service import logs, memory
    from mega_backend.service.model import loader

    sleep_while_waiting()
    memory.keep()
    logs.configure("json")
    token = read_token(arguments.token_file)
    if not token:
        raise ValueError("a cluster answers other machines, so it needs a token: give token_file or set MEGA_TOKEN")
    recoverer = load() if load else loader(arguments.model, arguments.device)(lambda *_: None)
    batcher = Batcher(64 if arguments.device == "cpu" else 1024)
    return create_app(recoverer, token=token, loopback=False, batcher=batcher)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _room(total: Mapping[str, float], gpus: float) -> int:
    """How many workers a cluster with these resources has room for. Raises BatchError where it is none."""
    name, each = ("GPU", gpus) if gpus else ("CPU", 1.0)
    most = int(total.get(name, 0) // each)
    if not most:
        what = "GPU: add nodes with GPUs, take --device cpu" if gpus else "processor: add nodes"
        raise BatchError(f"the cluster has no {what}, or say by --workers how many will join it")
    return most


class _Rows:
    """A worker; Ray Data's rows are dictionaries."""

    def __init__(self, settings: Settings, load: Callable[[], Any]) -> None:
        self._work, self._unable = None, ""
        try:
            self._work = FileRecovery(settings, load)
        # A worker that fails as it starts would be started anew for ever, without a word.
        except Exception as error:
            self._unable = f"{error or type(error).__name__}, says {socket.gethostname()}"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._work is None:
            return {**asdict(Outcome(row["source"])), "unable": self._unable}
        return {**asdict(self._work(Item(row["source"], row["output"]))), "unable": ""}


def run_batch(
    items: list[Item], settings: Settings, load: Callable[[], Any], address: str, workers: int = 0, gpus: float = 0
) -> Iterator[Outcome]:
    """Outcomes as they come from the cluster's workers, each with a model of its own.

    A worker that dies is replaced and its file is done again, of a video what is missing; results are written whole, so
    that nothing else follows from it. A file whose workers die again and again is an outcome too.

    Raises BatchError where there is no cluster or no Ray, no room in it, or a worker that cannot load the model.
    """
    try:
        import ray
    except ImportError:
        raise BatchError("batches on a cluster need Ray: pip install 'mega-mesh-recovery[cluster]'") from None
    if not ray.is_initialized():
        try:
            _knock(address)
            # What fails is told by exceptions; what Ray's core logs besides is for those who set this themselves.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            with standard_error_without(_LOG_LEVEL_SET):
                ray.init(address=address, logging_level="warning", log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise BatchError(f"there is no Ray cluster at {address} ({error}): start one with `ray start`") from error
    most = workers or _room(ray.cluster_resources(), gpus)
    context = ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of its plans, and of our settings
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # one file each: the others go on
    rows = ray.data.from_items([asdict(item) for item in items], override_num_blocks=len(items))
    with warnings.catch_warnings():
        # From Ray 2.64 on retries have to be given otherwise; pyproject.toml keeps to versions before it.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        done = rows.map(
            _Rows,
            fn_constructor_args=(settings, load),
            # As many from the start, who begin as they find room: a pool that grows would need files that wait at
            # workers, and one that kills its worker would take those with it.
            compute=ray.data.ActorPoolStrategy(size=min(most, len(items)), max_tasks_in_flight_per_actor=1),
            max_task_retries=RETRIES,
            num_cpus=1,
            num_gpus=gpus or None,
        )
    missing = {item.source for item in items}
    for row in done.iter_rows():
        if row["unable"]:
            raise BatchError(f"the workers cannot load the model: {row['unable']}; every node needs it at that place")
        missing.discard(row["source"])
        yield Outcome(row["source"], int(row["people"]), row["error"])
    for source in sorted(missing):
        yield Outcome(source, error=f"every worker that took it died, {RETRIES + 1} in all: is it too large for them?")
