"""The service and batches on a Ray cluster of two nodes on this machine, also when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
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
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20})
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


def test_the_server_on_ray_serve(cluster, tmp_path, monkeypatch):
    from ray import serve

    from mega_backend import cluster as clusters

    (tmp_path / "token").write_text("s3cret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = clusters.Deployment(
        device="cpu", token_file=str(tmp_path / "token"), min_replicas=2, max_replicas=2, cpus=1
    )
    try:
        serve.run(clusters.build(arguments, Reading), name="mega")
        url = f"http://127.0.0.1:{port}"
        client = Client(url, "s3cret", timeout=60)
        assert client.health()["status"] == "ready"
        with pytest.raises(BackendError, match="token is missing or wrong"):
            Client(url, "wrong", timeout=60).health()
        for seed in range(4):
            kinds = [message.kind for message in client.random(RandomParameters(count=2, seed=seed, steps=3))]
            assert kinds[-1] == "done" and kinds.count("person") == 2
        replicas = serve.status().applications["mega"].deployments["mega"].replica_states
        assert json.dumps(replicas) and sum(replicas.values()) == 2
    finally:
        serve.shutdown()


def test_no_cluster_is_a_sentence():
    script = (
        "from mega_backend import cluster, batch\n"
        "try: list(cluster.run_batch([batch.Item('a', 'b')], batch.Settings(), None, '127.0.0.1:1'))\n"
        "except batch.BatchError as error: print(error)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "no Ray cluster at 127.0.0.1:1" in done.stdout
