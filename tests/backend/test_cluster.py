"""The service and batches on a Ray cluster of two nodes on this machine, also when a worker dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_batch import Reading, check, film, folder  # noqa: F401  (a fixture)

import mega_backend
from mega_backend import batch
from mega_backend.client import BackendError, Client
from mega_backend.protocol import RandomParameters

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CALLED = "called"


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes."""
    from ray.cluster_utils import Cluster

    # Workers import the tests' fakes and this checkout, wherever they start.
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "backend"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    # Serve gives its proxy five seconds, and Ray its workers only what others leave: a busy machine needs more.
    os.environ.update(RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60", RAY_worker_niceness="0")
    # Requests are counted every ten seconds else.
    for each in ("REPLICA", "HANDLE"):
        os.environ[f"RAY_SERVE_{each}_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
    for attempt in range(3):
        try:
            started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20})
            break
        # Ray's own bound of 30 s for a node to start, which a busy machine does not always meet.
        except Exception:
            if attempt == 2:
                raise
    started.add_node(num_cpus=2, object_store_memory=100 << 20)
    ray.init(address=started.address, logging_level="warning", log_to_driver=False)
    yield started.address
    ray.shutdown()
    started.shutdown()


class Slow(Reading):
    """Tells its process, and takes its time."""

    def recover(self, picture, **options):
        (Path(picture).parent.parent / CALLED).mkdir(exist_ok=True)
        (Path(picture).parent.parent / CALLED / f"{os.getpid()}").touch()
        time.sleep(0.3)
        return super().recover(picture, **options)


def test_a_batch_on_two_nodes_survives_a_killed_worker(cluster, folder, tmp_path):  # noqa: F811
    from mega_backend import cluster as clusters

    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    settings, results = batch.Settings(), tmp_path / "out"
    items, _ = batch.plan(folder, results, settings)
    outcomes, killed = [], None
    for outcome in clusters.run_batch(items, settings, Slow, cluster, workers=2):
        outcomes.append(outcome)
        workers = list((folder / CALLED).iterdir())
        if killed is None and len(outcomes) >= 2:
            killed = int(workers[0].name)
            os.kill(killed, signal.SIGKILL)
    assert killed is not None
    assert sorted({outcome.source for outcome in outcomes}) == [item.source for item in items]
    assert not any(outcome.error for outcome in outcomes)
    for scratch in results.rglob(".*"):
        scratch.unlink()
    assert check(folder, results) == 12
    assert len(list((folder / CALLED).iterdir())) >= 2
    assert batch.plan(folder, results, settings) == ([], 12)


LOOKED, KILLED = "looked", "killed"


class Filming:
    """The tiny model, which notes where in a clip its process is, and stays in the middle until it was killed there."""

    def __init__(self, model: Path, notes: Path):
        from mega_backend.video import recover

        self._recoverer = mega_backend.load(model)
        watch = recover.Watcher.watch

        def noting(watcher, frames, *others):
            (notes / f"{LOOKED}-{frames[0].index}-{os.getpid()}").touch()
            while frames[0].index and not (notes / KILLED).exists():
                time.sleep(0.05)
            return watch(watcher, frames, *others)

        recover.Watcher.watch = noting

    def __getattr__(self, name: str):
        return getattr(self._recoverer, name)


def wait_for(what, seconds: float = 90):
    """What it gives, once it gives anything."""
    end = time.monotonic() + seconds
    while not (given := what()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return given


def test_a_worker_killed_in_the_middle_of_a_video_is_gone_on_from_there(cluster, tmp_path, tiny_model):
    from mega_backend import cluster as clusters

    notes = tmp_path / "notes"
    notes.mkdir()
    film(tmp_path / "in" / "walk.avi")
    settings = batch.Settings(model=str(tiny_model), steps=1)
    (item,), _ = batch.plan(tmp_path / "in", tmp_path / "out", settings)
    load = partial(Filming, tiny_model, notes)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(list, clusters.run_batch([item], settings, load, cluster, workers=1))
        # Its first second is done, it is at the next.
        wait_for((Path(item.output + ".part") / "000000.npz").exists)
        (note,) = wait_for(lambda: list(notes.glob(f"{LOOKED}-5-*")))
        victim = int(note.name.rsplit("-", 1)[1])
        assert not Path(item.output).exists()
        (notes / KILLED).touch()
        os.kill(victim, signal.SIGKILL)
        (outcome,) = running.result(180)
    assert outcome.source == item.source and not outcome.error
    # Another process did the rest of it, and the rest alone.
    assert len(list(notes.glob(f"{LOOKED}-0-*"))) == 1
    assert {int(path.name.rsplit("-", 1)[1]) for path in notes.glob(f"{LOOKED}-5-*")} > {victim}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [batch.SETTINGS, "walk.avi.npz"]
    assert batch.plan(tmp_path / "in", tmp_path / "out", settings) == ([], 1)
    (whole,), _ = batch.plan(tmp_path / "in", tmp_path / "whole", settings)
    assert not batch.FileRecovery(settings, lambda: mega_backend.load(tiny_model))(whole).error
    with np.load(whole.output) as one, np.load(item.output) as other:
        for name in one.files:
            assert np.array_equal(one[name], other[name], equal_nan=True), name


class Deadly(Reading):
    """Dies of one picture."""

    def recover(self, picture, **options):
        if Path(picture).name == "4.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().recover(picture, **options)


def test_a_file_that_kills_every_worker_is_told_and_the_others_are_done(cluster, folder, tmp_path):  # noqa: F811
    from mega_backend import cluster as clusters

    items, _ = batch.plan(folder, tmp_path / "out", batch.Settings())
    outcomes = list(clusters.run_batch(items, batch.Settings(), Deadly, cluster, workers=1))
    assert sorted(outcome.source for outcome in outcomes) == [item.source for item in items]
    (failed,) = [outcome for outcome in outcomes if outcome.error]
    assert failed.source.endswith("4.png") and "every worker that took it died" in failed.error
    assert check(folder, tmp_path / "out") == 11


class Telling(Reading):
    """Tells which process works, and takes its time."""

    def __init__(self, pids: Path, delay: float = 0.05):
        super().__init__(delay)
        self.pids = pids

    def random(self, *arguments, **options):
        (self.pids / str(os.getpid())).touch()
        return super().random(*arguments, **options)


@pytest.fixture(scope="module")
def serving(cluster) -> Iterator[str]:
    """The address of Ray Serve."""
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def deployed(serving, tmp_path):
    """Deploys the server: a client, and the folder in which replicas tell their processes."""
    from ray import serve

    from mega_backend import cluster as clusters

    def deploy(delay: float, **options) -> tuple[Client, Path]:
        (tmp_path / "pids").mkdir()
        (tmp_path / "token").write_text("s3cret")
        arguments = clusters.Deployment(device="cpu", token_file=str(tmp_path / "token"), cpus=1, **options)
        load = partial(Telling, tmp_path / "pids", delay)
        serve.run(clusters.build(arguments, load), name="mega")
        return Client(serving, "s3cret", timeout=60), tmp_path / "pids"

    yield deploy
    serve.delete("mega")


def replicas() -> dict[str, int]:
    """How many there are of each state."""
    from ray import serve

    states = serve.status().applications["mega"].deployments["mega"].replica_states
    return {str(getattr(state, "value", state)): count for state, count in states.items() if count}


def test_the_server_on_ray_serve_and_a_killed_replica(deployed):
    client, pids = deployed(0.05, min_replicas=2, max_replicas=2)
    assert client.health()["status"] == "ready"
    with pytest.raises(BackendError, match="token is missing or wrong"):
        Client(client.url, "wrong", timeout=60).health()
    for seed in range(4):
        kinds = [message.kind for message in client.random(RandomParameters(count=2, seed=seed, steps=3))]
        assert kinds[-1] == "done" and kinds.count("person") == 2
    assert replicas() == {"RUNNING": 2}

    def working() -> set[int]:
        return {int(path.name) for path in pids.iterdir()}

    for path in pids.iterdir():
        path.unlink()
    stream = iter(client.random(RandomParameters(steps=54)))
    while next(stream).kind != "progress":
        continue
    (victim,) = working()
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(BackendError, match=r"lost .* then repeat the request|stopped before .* try again"):
        list(stream)
    # The other goes on at once, and soon there are two again.
    end = time.monotonic() + 90
    while len(working() - {victim}) < 2:
        assert time.monotonic() < end, "the killed replica was not replaced"
        try:
            assert list(client.random(RandomParameters(steps=3)))[-1].kind == "done"
        except BackendError as refused:
            assert refused.status in (0, 500, 503) and "again" in str(refused), refused


def test_replicas_rise_under_load_and_fall_again_and_cut_nobody_off(deployed):
    client, pids = deployed(0.4, min_replicas=1, max_replicas=2, ongoing=2, up_seconds=1, down_seconds=1)
    assert replicas() == {"RUNNING": 1}
    enough = threading.Event()

    def ask(steps: int = 2) -> str:
        return list(client.random(RandomParameters(steps=steps)))[-1].kind

    def ask_on() -> set[str]:
        kinds = set()
        while not enough.is_set():
            kinds.add(ask())
        return kinds

    with ThreadPoolExecutor(8) as pool:
        crowd = [pool.submit(ask_on) for _ in range(6)]
        try:
            wait_for(lambda: replicas() == {"RUNNING": 2})
            wait_for(lambda: len(list(pids.iterdir())) == 2)
            long = [pool.submit(ask, 54) for _ in range(2)]  # 22 seconds
        finally:
            enough.set()
        assert [one.result(60) for one in crowd] == [{"done"}] * 6
        # Two requests are for one replica: the other goes while they run.
        wait_for(lambda: replicas().get("RUNNING") == 1)
        assert [one.result(60) for one in long] == ["done"] * 2
    wait_for(lambda: replicas() == {"RUNNING": 1})
    assert ask() == "done"


def test_no_cluster_is_a_sentence():
    script = (
        "from mega_backend import cluster, batch\n"
        "try: list(cluster.run_batch([batch.Item('a', 'b')], batch.Settings(), None, '127.0.0.1:1'))\n"
        "except batch.BatchError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "no Ray cluster at 127.0.0.1:1" in done.stdout
