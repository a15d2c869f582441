"""The service and batches on a Ray cluster of two nodes on this machine, also when a worker dies."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from test_batch import Reading, check, folder  # noqa: F401  (a fixture)

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


class Telling(Reading):
    """Tells which process works, and takes its time."""

    def __init__(self, pids: Path):
        super().__init__(0.05)
        self.pids = pids

    def random(self, *arguments, **options):
        (self.pids / str(os.getpid())).touch()
        return super().random(*arguments, **options)


@pytest.fixture(scope="module")
def served(cluster, tmp_path_factory):
    """The server deployed as two replicas: a client, and the folder in which they tell their processes."""
    from ray import serve

    from mega_backend import cluster as clusters

    folder = tmp_path_factory.mktemp("served")  # noqa: F811 (not that of the pictures)
    (folder / "pids").mkdir()
    (folder / "token").write_text("s3cret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = clusters.Deployment(
        device="cpu", token_file=str(folder / "token"), min_replicas=2, max_replicas=2, cpus=1
    )
    serve.run(clusters.build(arguments, partial(Telling, folder / "pids")), name="mega")
    yield Client(f"http://127.0.0.1:{port}", "s3cret", timeout=60), folder / "pids"
    serve.shutdown()


def test_the_server_on_ray_serve(served):
    from ray import serve

    client, _ = served
    assert client.health()["status"] == "ready"
    with pytest.raises(BackendError, match="token is missing or wrong"):
        Client(client.url, "wrong", timeout=60).health()
    for seed in range(4):
        kinds = [message.kind for message in client.random(RandomParameters(count=2, seed=seed, steps=3))]
        assert kinds[-1] == "done" and kinds.count("person") == 2
    replicas = serve.status().applications["mega"].deployments["mega"].replica_states
    assert sum(replicas.values()) == 2


def test_a_killed_replica_is_a_sentence_and_is_replaced(served):
    client, pids = served

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


def test_no_cluster_is_a_sentence():
    script = (
        "from mega_backend import cluster, batch\n"
        "try: list(cluster.run_batch([batch.Item('a', 'b')], batch.Settings(), None, '127.0.0.1:1'))\n"
        "except batch.BatchError as error: print(error)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "no Ray cluster at 127.0.0.1:1" in done.stdout
