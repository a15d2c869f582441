"""Beyond one machine, on Ray (extra `cluster`): the server as a Ray Serve application, batches of files on Ray Data.

    serve run mega_backend.cluster:build model=default device=cuda max_replicas=8 token_file=/run/secrets/mega
    mega batch PICTURES -o RESULTS --cluster auto --device cuda

The application is that of `mega serve`, one replica for each GPU; clients need its URL and token alone.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from mega_backend.batch import BatchError, FileRecovery, Item, Outcome, Settings

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


class _Rows(FileRecovery):
    """Ray Data's rows are dictionaries."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return asdict(super().__call__(Item(row["source"], row["output"])))


def run_batch(
    items: list[Item], settings: Settings, load: Callable[[], Any], address: str, workers: int = 0, gpus: float = 0
) -> Iterator[Outcome]:
    """Outcomes as they come from the cluster's workers, each with a model of its own.

    A worker that dies is replaced and its file is done again, of a video what is missing; results are written whole, so
    that nothing else follows from it. A file whose workers die again and again is an outcome too.

    Raises BatchError where there is no cluster or no Ray.
    """
    try:
        import ray
    except ImportError:
        raise BatchError("batches on a cluster need Ray: pip install 'mega-mesh-recovery[cluster]'") from None
    if not ray.is_initialized():
        try:
            _knock(address)
            ray.init(address=address, logging_level="warning", log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise BatchError(f"there is no Ray cluster at {address} ({error}): start one with `ray start`") from error
    total = ray.cluster_resources()
    most = workers or max(1, int(total.get("GPU", 0) // gpus if gpus else total.get("CPU", 1)))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # one file each: the others go on
    rows = ray.data.from_items([asdict(item) for item in items], override_num_blocks=len(items))
    done = rows.map(
        _Rows,
        fn_constructor_args=(settings, load),
        # A file that kills its worker must not take others with it, which wait there.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(items)), max_tasks_in_flight_per_actor=1),
        max_task_retries=RETRIES,
        num_cpus=1,
        num_gpus=gpus or None,
    )
    missing = {item.source for item in items}
    for row in done.iter_rows():
        missing.discard(row["source"])
        yield Outcome(row["source"], int(row["people"]), row["error"])
    for source in sorted(missing):
        yield Outcome(source, error=f"every worker that took it died, {RETRIES + 1} in all: is it too large for them?")
