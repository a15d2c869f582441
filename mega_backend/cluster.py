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


class Deployment(BaseModel):
    """Arguments of `build`, as `serve run` or a Serve config file gives them.

    Attributes:
        model, device: as for `mega serve`.
        token_file: where every replica finds the token; without it MEGA_TOKEN in the replica's environment.
        min_replicas, max_replicas: bounds of autoscaling.
        ongoing: requests for each replica that autoscaling aims at; they share its device.
        cpus, gpus: that a replica takes; gpus defaults to 1 on CUDA devices.
    """

    model: str = "default"
    device: str = "cuda"
    token_file: str | None = None
    min_replicas: int = 1
    max_replicas: int = 4
    ongoing: float = 8
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
        },
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": gpus},
        graceful_shutdown_timeout_s=20,
    )
    return deployment(serve.ingress(make)()).bind()


def replica(arguments: Deployment, load: Callable[[], Any] | None = None) -> Any:
    """The ASGI application of one replica, its model loaded."""
    from mega_backend.batching import Batcher
    from mega_backend.server import create_app, read_token, sleep_while_waiting
    from mega_backend.service import logs
    from mega_backend.service.model import loader

    sleep_while_waiting()
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

    A worker that dies is replaced and its files are done again, of a video what is missing; results are written whole,
    so that nothing else follows from it. Raises BatchError where there is no cluster or no Ray.
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
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([asdict(item) for item in items], override_num_blocks=len(items))
    done = rows.map(
        _Rows,
        fn_constructor_args=(settings, load),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(items))),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    for row in done.iter_rows():
        yield Outcome(row["source"], int(row["people"]), row["error"])
