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
from PIL import Image
from test_batch import Reading, check, film, folder  # noqa: F401  (a fixture)
from waiting import program, until

import mega_backend
from mega_backend import batch
from mega_backend.client import BackendError, Client
from mega_backend.protocol import RandomParameters
from mega_backend.result import Recovery

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[cluster]'")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CALLED = "called"


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes."""
    from ray._private import services
    from ray.cluster_utils import Cluster

    # Workers import the tests' fakes and this checkout, wherever they start.
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "backend"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    # Serve gives its proxy five seconds, and Ray its workers only what others leave: a busy machine needs more.
    os.environ.update(RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60", RAY_worker_niceness="0")
    # Requests are counted every ten seconds else.
    for each in ("REPLICA", "HANDLE"):
        os.environ[f"RAY_SERVE_{each}_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
    started = Cluster()
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(services, "get_node", partial(patient, services.get_node))
            for _ in range(2):
                started.add_node(num_cpus=2, object_store_memory=100 << 20)
        ray.init(address=started.address, logging_level="warning", log_to_driver=False)
        yield started.address
    finally:
        ray.shutdown()
        started.shutdown()


def patient(get_node, *node):
    """What Ray knows of a node that starts. It gives up after 30 s, which a busy machine does not always meet."""
    end = time.monotonic() + 180
    while True:
        try:
            return get_node(*node)
        except RuntimeError:  # not there yet
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


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
            if frames[0].index:
                until((notes / KILLED).exists, 300, pause=0.05)
            return watch(watcher, frames, *others)

        recover.Watcher.watch = noting

    def __getattr__(self, name: str):
        return getattr(self._recoverer, name)


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
        until((Path(item.output + ".part") / "000000.npz").exists)
        (note,) = until(lambda: list(notes.glob(f"{LOOKED}-5-*")))
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


def batch_workers() -> set[int]:
    """The processes of the workers that live."""
    from ray._private import state

    return {
        actor["Pid"]
        for actor in state.actors().values()
        if actor["State"] == "ALIVE" and "MapWorker" in actor["ActorClassName"]
    }


def test_the_command_goes_on_after_a_killed_worker_and_a_killed_command(cluster, tmp_path, tiny_model):
    """`mega batch … --cluster`, as a user has it: nothing half-written is taken for a result, nothing is done twice."""
    source, results = tmp_path / "in", tmp_path / "out"
    people = Image.open(ROOT / "examples" / "people.jpg")
    names = [f"day{number % 2}/{number:02d}.jpg" for number in range(24)]
    for number, name in enumerate(names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        people.resize((320 + number, 240)).save(source / name)
    film(source / "day0" / "walk.avi")
    command = [sys.executable, "-m", "mega_backend", "batch", str(source), "-o", str(results), "--cluster", cluster,
               "--workers", "2", "--model", str(tiny_model), "--steps", "1"]  # fmt: skip

    def there() -> list[str]:
        return sorted(str(path.relative_to(results)) for path in results.rglob("*.npz") if ".part" not in str(path))

    with program(command, cwd=ROOT, seconds=300) as running:
        assert running.stdout.readline() == "25 files to do, 0 done already\n"
        until(lambda: len(there()) >= 2, 180, pause=0.02)
        assert len(batch_workers()) == 2, "two workers were asked for"
        victim = min(batch_workers())
        os.kill(victim, signal.SIGKILL)
        before = len(there())
        until(lambda: len(there()) >= before + 2, 180, pause=0.02)
        assert victim not in batch_workers()
        assert running.poll() is None
    # The command was killed too, and its workers end with it.
    until(lambda: not batch_workers())
    done = there()
    assert 4 <= len(done) < 25
    stamps = {name: (results / name).stat().st_mtime_ns for name in done}
    # What a kill in the middle of a write leaves, a minute later; and what is not ours, or may be in work.
    left, young, others = (
        results / "day1" / f".{name}" for name in ("01.jpg.npz.a1b2c3d4", "03.jpg.npz.e5f6g7h8", "x")
    )
    left.parent.mkdir(exist_ok=True)
    for path, age in ((left, 100), (young, -1000), (others, 100)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "ray" not in again.stderr.lower(), "what Ray says to itself"
    assert again.stdout == f"{25 - len(done)} files to do, {len(done)} done already\n"
    assert there() == sorted([*(f"{name}.npz" for name in names), "day0/walk.avi.npz"])
    assert all((results / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    for number, name in enumerate(names):
        recovery = Recovery.load(results / f"{name}.npz")
        assert tuple(recovery.picture_size) == (320 + number, 240) and recovery.meta["picture"] == Path(name).name
    with np.load(results / "day0" / "walk.avi.npz") as motion:
        assert len(motion["frame"])
    hidden = {path for path in results.rglob(".*") if path.is_file()}
    assert left not in hidden and {young, others} <= hidden
    assert not list(results.rglob("*.part"))


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
            until(lambda: replicas() == {"RUNNING": 2})
            until(lambda: len(list(pids.iterdir())) == 2)
            long = [pool.submit(ask, 54) for _ in range(2)]  # 22 seconds
        finally:
            enough.set()
        assert [one.result(60) for one in crowd] == [{"done"}] * 6
        # Two requests are for one replica: the other goes while they run.
        until(lambda: replicas().get("RUNNING") == 1)
        assert [one.result(60) for one in long] == ["done"] * 2
    until(lambda: replicas() == {"RUNNING": 1})
    assert ask() == "done"


def test_a_cluster_without_what_the_workers_need_is_a_sentence(cluster, folder, tmp_path):  # noqa: F811
    from mega_backend import cluster as clusters

    items, _ = batch.plan(folder, tmp_path / "out", batch.Settings())
    with pytest.raises(batch.BatchError, match=r"has no GPU: add nodes with GPUs, take --device cpu, or .* --workers"):
        list(clusters.run_batch(items, batch.Settings(), Reading, cluster, gpus=1))


def unable():
    raise ValueError("there is no model in '/there'")


def test_workers_that_cannot_load_the_model_end_the_batch_with_a_sentence(cluster, folder, tmp_path):  # noqa: F811
    from mega_backend import cluster as clusters

    items, _ = batch.plan(folder, tmp_path / "out", batch.Settings())
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(
            batch.BatchError, match=r"cannot load the model: there is no model in '/there', says .*; every node"
        ),
    ):
        pool.submit(list, clusters.run_batch(items, batch.Settings(), unable, cluster, workers=1)).result(120)


def test_no_cluster_is_a_sentence():
    script = (
        "from mega_backend import cluster, batch\n"
        "try: list(cluster.run_batch([batch.Item('a', 'b')], batch.Settings(), None, '127.0.0.1:1'))\n"
        "except batch.BatchError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "no Ray cluster at 127.0.0.1:1" in done.stdout
