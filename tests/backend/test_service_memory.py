"""Memory that requests leave is kept while there is work, and given back at rest."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from fake_recoverer import FakeRecoverer
from waiting import until

from mega_backend import server
from mega_backend.client import Client
from mega_backend.protocol import RandomParameters
from mega_backend.service import memory

ROOT = Path(__file__).resolve().parents[2]

# Prints whether memory is kept; MiB resident at most, after the work, and at rest, over what it was before the work.
HEAP = """
import sys, threading
from mega_backend.service import memory
kept = memory.keep()
assert "torch" not in sys.modules, "too late"
import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

before = resident()
def work():
    global most
    blocks = [torch.ones(5 << 20) for _ in range(4)]  # 20 MiB each, as of a batch
    most = resident() - before

for _ in range(3):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
after = resident() - before
memory.give_back()
print(int(kept), most, after, resident() - before)
"""


def printed(script: str, **environment: str) -> tuple[int, ...]:
    """The numbers that a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_what_is_freed_is_kept_and_given_back_when_asked():
    kept, most, after, rest = printed(HEAP)
    if not kept:
        pytest.skip("needs glibc, and no settings of its own in the environment")
    assert most >= 78 and after >= 0.95 * most and rest <= 10
    # Whoever has settings of their own keeps them.
    assert not printed(HEAP, MALLOC_ARENA_MAX="3")[0]


KERNELS = """
import os, sys
from mega_backend.service import memory
memory.keep()
assert "torch" not in sys.modules, "too late"
import torch
from mega_backend.linear import linear

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

weight, sizes = torch.ones(1024, 256), torch.randperm(1000, generator=torch.Generator().manual_seed(0)) + 1
with torch.no_grad():
    for rows in sizes[:200]:
        linear(torch.ones(int(rows), 256), weight)
    before = resident()
    for rows in sizes[200:]:
        linear(torch.ones(int(rows), 256), weight)
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_batches_of_ever_other_sizes_do_not_make_it_grow():
    assert printed(KERNELS)[1] <= 100, "300 and more without bounds"
    assert printed(KERNELS, ONEDNN_PRIMITIVE_CACHE_CAPACITY="7")[0] == 7, "whoever has a setting of their own keeps it"


def test_memory_is_given_back_once_after_each_time_of_work(monkeypatch):
    given = []
    monkeypatch.setattr(memory, "REST", 0.2)
    monkeypatch.setattr(memory, "give_back", lambda: given.append(time.monotonic()))
    app = server.create_app(FakeRecoverer())
    instance = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(instance.serve()), daemon=True)
    thread.start()
    try:
        until(lambda: instance.started)
        client = Client(f"http://127.0.0.1:{instance.servers[0].sockets[0].getsockname()[1]}")
        time.sleep(0.5)
        assert given == [], "before there was any work"
        for count in (1, 2):
            assert list(client.random(RandomParameters(steps=1)))[-1].kind == "done"
            until(lambda so_many=count: len(given) >= so_many)
            time.sleep(0.5)
            assert len(given) == count
    finally:
        instance.should_exit = True
        thread.join(10)
