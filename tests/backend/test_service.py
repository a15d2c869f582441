"""Under concurrency, malice and bad luck the service gives everybody their own results, or a sentence."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from fake_recoverer import FakeBody, FakeRecoverer
from hypothesis import HealthCheck, given, settings
from waiting import line_with, program, until

from benchmarks import malformed
from mega_backend import protocol, server, turns
from mega_backend.batching import Batcher
from mega_backend.client import BackendError, Client, Stopped
from mega_backend.protocol import RandomParameters, RecoverParameters, ResampleParameters
from mega_backend.service import logs
from mega_backend.service.model import share

ROOT = Path(__file__).resolve().parents[2]


class Rows:
    """A model with one row function."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches: list[int] = []

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(values))
        time.sleep(self.seconds)
        return values * 2 + 1


class Encoding(FakeRecoverer):
    """Its results tell the picture and the hypothesis that they were made from; the device has a part in them."""

    def __init__(self, seconds: float = 0.002) -> None:
        super().__init__()
        self.model = Rows(seconds)

    def recover(self, picture, hypotheses=5, seed=0, steps=5, temperature=1.0, progress=None, boxes=None, found=None):
        recovery = super().recover(picture, hypotheses, seed, steps, temperature, progress, boxes, found)
        for index, person in enumerate(recovery.people):
            rows = torch.arange(hypotheses, dtype=torch.float64) + 1000.0 * float(picture[0, 0, 0]) + 100 * index
            for step in range(steps):
                if progress is not None:
                    progress(step / steps, "sampling")
                rows = self.model.logits(rows[:, None])[:, 0] / 2 - 0.5
            person.log_probability = rows.float().numpy()
        return recovery


class Running:
    """A server in a thread of this process."""

    def __init__(self, recoverer, limits=None, token="") -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        limits = limits or server.Limits()
        self.app = server.create_app(recoverer, limits=limits, token=token)
        config = uvicorn.Config(
            self.app, http=server.bounded_protocol(limits), log_level="critical", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        self.port = self._listener.getsockname()[1]
        self.client = Client(f"http://127.0.0.1:{self.port}", token)
        self.jobs = self.app.state.mega.jobs
        self.held = self.app.state.mega.held

    def settle(self, seconds: float = 10.0) -> None:
        """Wait until nothing runs any more."""
        until(lambda: self.jobs.idle, seconds)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def running():
    started = []

    def start(recoverer=None, **options) -> Running:
        started.append(Running(recoverer or FakeRecoverer(), **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def recover(client: Client, grey: int, seed: int, hypotheses: int = 3, steps: int = 3):
    values = RecoverParameters(hypotheses=hypotheses, seed=seed, steps=steps)
    return client.recover(malformed.picture(grey=grey), values)


# Concurrency


def test_concurrent_clients_get_their_own_results_from_shared_batches(running):
    recoverer = Encoding()
    served = running(recoverer)

    def one(number: int) -> None:
        grey, seed, hypotheses = 1 + number, number % 3, 2 + number % 3
        picture = np.full((16, 24, 3), grey, np.uint8)
        expected = FakeRecoverer().recover(picture, hypotheses=hypotheses, seed=seed, steps=1)
        if number % 5 == 4:  # somebody who leaves in the middle
            with recover(served.client, grey, seed, hypotheses, steps=40) as stream:
                next(iter(stream))
            return
        people = [m.arrays for m in recover(served.client, grey, seed, hypotheses) if m.kind == "person"]
        for index, (person, other) in enumerate(zip(people, expected.people, strict=True)):
            told = 1000.0 * grey + 100 * index + np.arange(hypotheses)
            np.testing.assert_array_equal(person["log_probability"], told.astype(np.float32))
            np.testing.assert_array_equal(person["vertices"], other.vertices)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(40)))
    served.settle()
    assert max(recoverer.model.batches) > 4, "no batch was shared"
    assert served.held.bytes == 0


def test_a_picture_does_not_wait_for_long_work(running):
    served = running(Encoding(0.03))
    with recover(served.client, 7, 0, hypotheses=100, steps=54) as long:
        messages = iter(long)  # kept: its end would close the connection
        next(messages)
        assert any(m.kind == "done" for m in recover(served.client, 9, 0, steps=1))
        end = time.monotonic() + 5
        while served.jobs.running > 1 and time.monotonic() < end:  # the short one is being put away
            time.sleep(0.01)
        assert served.jobs.running == 1, "the long request ended before the short one"


def test_out_of_memory_on_the_device_is_nobodys_end(running):
    recoverer = Encoding()
    plenty = recoverer.model.logits

    def logits(values: torch.Tensor) -> torch.Tensor:
        if len(values) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plenty(values)

    recoverer.model.logits = logits
    served = running(recoverer)
    people = [m.arrays for m in recover(served.client, 9, 0, hypotheses=8) if m.kind == "person"]
    np.testing.assert_array_equal(people[1]["log_probability"], 9100 + np.arange(8))


def test_a_real_model_gives_the_same_in_shared_batches(tiny):
    batcher = Batcher(rows=8)
    batcher.start()
    sizes = []
    batcher.observe = lambda name, rows, requests, seconds: sizes.append(requests)
    shared = share(tiny, batcher)

    def one(seed: int):
        with turns.request(turns.Requester()):
            made = shared.random(3, seed=seed, steps=3)
            return shared.resample(made, keep=["torso"], hypotheses=2, seed=seed, steps=2)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, range(4)))
    batcher.stop()
    assert max(sizes) > 1, "no batch was shared"
    for seed, recovery in enumerate(together):
        alone = tiny.resample(tiny.random(3, seed=seed, steps=3), keep=["torso"], hypotheses=2, seed=seed, steps=2)
        for person, other in zip(recovery.people, alone.people, strict=True):
            np.testing.assert_array_equal(person.tokens, other.tokens)
            np.testing.assert_allclose(person.vertices, other.vertices, atol=1e-5)


# Malice


@pytest.fixture(scope="module")
def victim():
    one = Running(Encoding(), limits=server.Limits(body_bytes=1 << 20, pixels=10_000, idle_seconds=5, upload_seconds=2))
    logging.getLogger("mega").setLevel(logging.CRITICAL)
    yield one
    logging.getLogger("mega").setLevel(logging.NOTSET)
    one.stop()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(malformed.attempts())
def test_malformed_requests_are_refused_and_do_no_harm(victim, attempt):
    malformed.send(victim.port, attempt)
    assert victim.client.health()["status"] == "ready"


def test_after_all_that_nothing_is_left_behind(victim):
    victim.settle()
    assert victim.held.bytes == 0
    assert any(m.kind == "done" for m in victim.client.stream(malformed.request_for(2)))


@pytest.mark.parametrize("size", [(30_000, 30_000), (2**31 - 1, 1), (200, 200)])
def test_decompression_bombs_are_refused_by_their_heads(victim, size):
    with pytest.raises(BackendError, match=r"large|megapixels") as refused:
        victim.client.recover(malformed.announcing(size), RecoverParameters())
    assert refused.value.status == 422


@pytest.mark.parametrize(("side", "scans"), [(16, 1000), (4000, 150)])
def test_a_jpeg_of_far_too_many_scans_is_refused(running, side, scans):
    data = malformed.picture("JPEG", (side, side))
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(BackendError, match="too many scans"):
        running().client.recover(data[:-2] + scan * scans + data[-2:], RecoverParameters())


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P6 2 2 255 " + bytes(12)])
def test_formats_that_are_not_listed_are_refused(victim, data):
    with pytest.raises(BackendError, match="JPEG, PNG, WebP, TIFF, BMP and GIF"):
        victim.client.recover(data, RecoverParameters())


def test_pickles_do_not_travel(victim):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    data = buffer.getvalue()
    header = json.dumps({"kind": "recover", "fields": {}, "arrays": [["picture", len(data)]]}).encode()
    body = b"MEGA" + len(header).to_bytes(4, "little") + header + data
    assert malformed.send(victim.port, malformed.Attempt("POST", "/recover", body)) == 422


def test_a_form_of_another_site_is_refused(victim):
    body = protocol.encode(malformed.request_for(1))
    for headers in (
        [("Content-Type", "text/plain")],
        [("Origin", "http://evil.example")],
        [("Origin", "null")],
        [("Sec-Fetch-Site", "cross-site")],
    ):
        status = malformed.send(victim.port, malformed.Attempt("POST", "/random", body, tuple(headers)))
        assert status in (403, 415), headers


# Bounds


def test_headers_that_trickle_are_given_up_on_a_used_connection_too(running):
    served = running(limits=server.Limits(idle_seconds=1.0))
    with socket.create_connection(("127.0.0.1", served.port), 30) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 200 " in slow.recv(65536)
        rest = b""
        with contextlib.suppress(ConnectionError):  # where the machine is busy, it was closed by now
            slow.sendall(b"GET /health HTT")
            rest = b"".join(iter(lambda: slow.recv(65536), b""))  # until the server closes
        assert b" 200 " not in rest


def test_silent_connections_are_closed_and_their_number_is_bounded(running):
    served = running(limits=server.Limits(connections=4, idle_seconds=2.0))
    silent = [socket.create_connection(("127.0.0.1", served.port), 30) for _ in range(4)]
    with socket.create_connection(("127.0.0.1", served.port), 30) as extra:
        answer = extra.recv(4096)
        assert b" 503 " in answer and b"retry-after" in answer.lower()
    for one in silent:
        assert one.recv(1) == b""  # closed by the server
        one.close()
    assert served.client.health()


def test_an_upload_that_trickles_is_given_up(running):
    served = running(limits=server.Limits(upload_seconds=0.4))
    with socket.create_connection(("127.0.0.1", served.port), 5) as slow:
        slow.sendall(b"POST /recover HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\nMEGA")
        assert b" 408 " in slow.recv(4096)


def test_an_upload_that_is_cut_is_no_fault_of_the_server(running):
    served = running()
    with socket.create_connection(("127.0.0.1", served.port), 5) as cut:
        cut.sendall(b"POST /recover HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\nMEGA")
    text = ""
    end = time.monotonic() + 10
    while "/recover" not in text and time.monotonic() < end:
        time.sleep(0.01)
        text = served.app.state.mega.metrics.page().decode()
    assert 'mega_requests_total{endpoint="/recover",status="400"} 1.0' in text


def test_uploads_together_are_bounded(running):
    served = running(limits=server.Limits(held_bytes=10_000))
    with pytest.raises(BackendError, match="try again") as refused:
        served.client.recover(bytes(20_000), RecoverParameters())
    assert refused.value.status == 503
    assert served.held.bytes == 0


def test_the_picture_of_a_person_sampled_again_counts_as_held(running):
    served = running(FakeRecoverer(0.05))
    (person,) = [m.arrays for m in served.client.random(RandomParameters(steps=1)) if m.kind == "person"]
    state = {name: person[name] for name in protocol.PERSON_STATE}
    picture = np.frombuffer(malformed.picture(size=(1000, 1000)), np.uint8)
    with served.client.stream(protocol.request(ResampleParameters(steps=54), picture=picture, **state)) as stream:
        next(iter(stream))
        assert served.held.bytes >= 3_000_000 > 10 * picture.nbytes
    served.settle()
    assert served.held.bytes == 0


def test_work_that_was_done_is_not_cancelled_afterwards(running):
    """Else the device would give its memory back after every request."""
    served = running(Encoding())
    cancelled = []
    served.jobs._batcher.cancel = cancelled.append
    for seed in range(5):
        assert list(recover(served.client, 5, seed))[-1].kind == "done"
    served.settle()
    assert cancelled == []


def test_a_machine_that_vanishes_is_noticed(running):
    with running(FakeRecoverer(0.05)).client.random(RandomParameters(steps=20)) as stream:
        messages = iter(stream)  # kept: its end would close the connection
        next(messages)
        assert stream._connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def ended_as(served) -> set[str]:
    """How the work that was accepted has ended."""
    page = served.app.state.mega.metrics.page().decode()
    return set(re.findall(r'mega_results_total\{end="(\w+)"', page))


def test_a_client_that_does_not_read_does_not_hold_the_work(running):
    # Several times what all buffers in between take: 4 MiB in the kernel alone.
    large = FakeRecoverer(body=FakeBody.make(around=128, rings=129))
    served = running(large, limits=replace(server.Limits(), stall_seconds=0.5))
    body = protocol.encode(protocol.request(RandomParameters(count=256, steps=54)))
    with socket.create_connection(("127.0.0.1", served.port), 5) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(f"POST /random HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert until(lambda: ended_as(served)) == {"cancelled"}
    served.settle()


def test_a_queued_request_whose_client_leaves_makes_room(running):
    served = running(FakeRecoverer(0.05), limits=server.Limits(active=1, waiting=1))
    with served.client.random(RandomParameters(steps=40)) as first:
        messages = iter(first)
        next(messages)
        second = served.client.random(RandomParameters(steps=1))
        second.close()
        until(lambda: not served.jobs.waiting)
        third = served.client.random(RandomParameters(steps=1))
        first.close()
        assert any(m.kind == "done" for m in third)


def test_a_client_that_reads_nothing_loses_its_connection(running):
    served = running(limits=replace(server.Limits(), stall_seconds=0.3, connections=1))
    request = f"GET /app.js HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", served.port), 5) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(request * 40)  # more than the buffers in between take
        with pytest.raises(BackendError, match="too many connections"):
            served.client.health()
        end = time.monotonic() + 10
        while True:
            try:
                assert served.client.health()
                break
            except BackendError:
                assert time.monotonic() < end, "the connection was kept"
                time.sleep(0.05)


def test_memory_that_runs_out_outside_of_batches_is_a_503_too(running):
    class Full(FakeRecoverer):
        def random(self, *_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory")

    served = running(Full())
    with pytest.raises(BackendError, match="too little free memory for this; close other programs") as refused:
        list(served.client.random(RandomParameters()))
    assert refused.value.status == 503
    assert served.client.health()


# Secrets


def test_logs_and_metrics_hold_neither_token_nor_picture(running):
    stream = io.StringIO()
    logs.configure("json", stream)
    try:
        served = running(token="s3cret-token")
        list(recover(served.client, 5, 0))
        with pytest.raises(BackendError):
            Client(served.client.url, "wrong-token").health()
        # A line is written after its answer was sent.
        until(lambda: ": 401" in stream.getvalue())
    finally:
        text = stream.getvalue()
        for name in ("mega", "uvicorn.error"):
            logging.getLogger(name).handlers = []
            logging.getLogger(name).propagate = True
    lines = [json.loads(line) for line in text.splitlines()]
    assert {(line["event"], line.get("endpoint"), line.get("status")) for line in lines} >= {
        ("request", "/recover", 200),
        ("request", "other", 401),
    }
    assert "token" not in text and "PNG" not in text


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [(None, "cannot be read (No such file"), (b" \n", "is empty"), (b"\xff\xfe\x00", "is no text")],
)
def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch, contents, sentence):
    monkeypatch.setenv("MEGA_TOKEN", " from-environment\n")
    assert server.read_token(None) == "from-environment"
    path = tmp_path / "token"
    path.write_text("from-file\n")
    assert server.read_token(str(path)) == "from-file"
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(SystemExit) as refused:
        server.read_token(str(path))
    assert sentence in str(refused.value) and str(path) not in str(refused.value)


def test_no_option_takes_the_token_itself(capsys):
    from mega_backend import cli

    with pytest.raises(SystemExit) as refused:
        cli.main(["serve", "--token", "s3cret"])
    assert refused.value.code == 2
    assert "--token-file" not in capsys.readouterr().err.splitlines()[-1]


def test_a_token_that_no_header_carries_is_refused_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("тайна", encoding="utf-8")
    with pytest.raises(SystemExit, match="one line of ASCII"):
        server.read_token(str(tmp_path / "token"))
    monkeypatch.setenv("MEGA_TOKEN", "two\nlines")
    with pytest.raises(SystemExit, match="MEGA_TOKEN must be one line") as refused:
        server.read_token(None)
    assert "two" not in str(refused.value)


def test_metrics_count_requests_results_and_batches(running):
    served = running(Encoding())
    list(recover(served.client, 5, 0))
    served.settle()
    with socket.create_connection(("127.0.0.1", served.port), 5) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert 'mega_requests_total{endpoint="/recover",status="200"} 1.0' in text
    assert 'mega_results_total{end="done",endpoint="recover"} 1.0' in text
    assert 'mega_batch_rows_count{function="logits"}' in text
    assert "mega_waiting 0.0" in text and "process_resident_memory_bytes" in text


def test_openapi_says_what_the_endpoints_do(running):
    schema = running().app.openapi()
    for name in ("recover", "resample", "random", "find"):
        operation = schema["paths"][f"/{name}"]["post"]
        assert protocol.CONTENT_TYPE in operation["requestBody"]["content"]
        assert {"200", "401", "403", "408", "413", "415", "422", "503"} == set(operation["responses"])
        assert "Retry-After" in operation["responses"]["503"]["headers"]
    fields = schema["components"]["schemas"]["RecoverParameters"]["properties"]
    assert fields["hypotheses"]["minimum"] == 1 and fields["seed"]["type"] == "integer"


# Life


def serve_script(load: str, **options) -> str:
    return (
        "import sys, time; sys.path[:0] = ['tests', 'tests/backend']; from fake_recoverer import FakeRecoverer;"
        "from mega_backend import server\n"
        f"{load}\n"
        f"sys.exit(server.serve(load, port=0, **{options!r}))"
    )


def child(script: str):
    """A server that runs as a program of its own."""
    return program([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)


def test_health_answers_while_the_weights_load_and_work_waits_for_them(tmp_path):
    script = serve_script(
        "import pathlib\ndef load(progress):\n"
        " progress(0.3, 'reading the weights')\n"
        f" while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.02)\n"
        " return FakeRecoverer()"
    )
    with child(script) as process:
        client = Client(line_with("listening", process).split()[-1])
        until(lambda: client.health()["progress"] >= 0.3)
        assert client.health()["status"] == "loading" and client.health()["text"] == "reading the weights"
        with pytest.raises(BackendError, match="being loaded") as refused:
            client.random(RandomParameters())
        assert refused.value.status == 503
        (tmp_path / "go").touch()
        assert "30% reading the weights" in process.stdout.readline()
        assert "ready at" in process.stdout.readline()
        assert client.health()["status"] == "ready"
        assert any(m.kind == "done" for m in client.random(RandomParameters(steps=1)))


def test_a_model_that_cannot_be_loaded_ends_the_program_with_a_sentence():
    with child(serve_script("def load(progress): raise ValueError('no such model: give another')")) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "could not be loaded: no such model: give another" in errors


@pytest.mark.parametrize(("grace", "ending"), [(30.0, "done"), (0.2, "stopped")])
def test_sigterm_finishes_or_cancels_what_runs_and_exits_0(grace, ending):
    with child(serve_script("def load(progress): return FakeRecoverer(0.05)", grace=grace)) as process:
        url = line_with("ready", process).split()[-1]
        stream = iter(Client(url).random(RandomParameters(steps=54)))
        next(stream)
        process.terminate()
        if ending == "done":
            assert list(stream)[-1].kind == "done"
        else:
            with pytest.raises(BackendError, match="was stopped before this was done; start it again") as stopped:
                list(stream)
            assert stopped.value.status == 503
        assert process.wait(30) == 0


def test_neither_loading_nor_an_upload_counts_as_idle():
    load = "def load(progress): time.sleep(1.5); return FakeRecoverer()"
    with child(serve_script(load, idle_timeout=1.0)) as process:
        url = line_with("ready", process).split()[-1]
        body = protocol.encode(protocol.request(RandomParameters(steps=1)))
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 30) as slow:
            head = (
                f"POST /random HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            slow.sendall(head.encode() + body[:20])
            time.sleep(2.0)
            slow.sendall(body[20:])
            answer = b"".join(iter(lambda: slow.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200") and b'"done"' in answer
        assert process.wait(30) == 0


def test_a_killed_server_is_a_sentence_for_the_client():
    with child(serve_script("def load(progress): return FakeRecoverer(0.05)")) as process:
        url = line_with("ready", process).split()[-1]
        stream = iter(Client(url).random(RandomParameters(steps=54)))
        next(stream)
        os.kill(process.pid, 9)
        with pytest.raises(BackendError, match=r"lost .* start it again, then repeat|stopped before .* try again"):
            list(stream)


def test_cancelling_frees_the_device_within_a_batch(running):
    recoverer = Encoding(0.05)
    served = running(recoverer)
    stream = recover(served.client, 3, 0, hypotheses=100, steps=54)
    with pytest.raises(Stopped):
        for _ in itertools.takewhile(lambda m: m.kind == "progress", stream):
            stream.close()
    # A second's work at most, however busy the machine is; the whole of it takes many times as long.
    before = len(recoverer.model.batches)
    served.settle()
    assert len(recoverer.model.batches) <= before + 20
    before = len(recoverer.model.batches)
    assert before < 54
    time.sleep(0.1)
    assert len(recoverer.model.batches) == before
