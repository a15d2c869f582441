"""The service on a real socket: streams, cancelling, refusals. The model is a fake."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fake_recoverer import FakeRecoverer
from PIL import Image
from waiting import program

from mega_backend import protocol, server
from mega_backend.client import BackendError, Client, Stopped
from mega_backend.protocol import FindParameters, Message, RandomParameters, RecoverParameters, ResampleParameters

ROOT = Path(__file__).resolve().parents[2]


def picture(width=80, height=60, grey=200) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (grey,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def running():
    """Starts servers in this process; gives a function that starts one and returns its client."""
    servers = []

    def start(recoverer=None, token="", limits=None) -> Client:
        listener = socket.create_server(("127.0.0.1", 0))
        app = server.create_app(recoverer or FakeRecoverer(), token=token, limits=limits)
        instance = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=instance.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        servers.append((instance, thread, listener))
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", token)
        client.app = app
        return client

    yield start
    for instance, thread, listener in servers:
        instance.should_exit = True
        thread.join(10)
        listener.close()


def test_health_and_body(running):
    client = running()
    health = client.health()
    assert health["protocol"] == protocol.PROTOCOL and health["device"] == "cpu" and health["model"]["name"] == "fake"
    body = client.body()
    assert body.digest == health["body"]
    assert client.body(known=body) is body


def test_recover_streams_progress_and_then_each_person(running):
    recoverer = FakeRecoverer(0.08)
    client = running(recoverer)
    messages = list(client.recover(picture(), RecoverParameters(hypotheses=3, seed=4)))
    kinds = [message.kind for message in messages]
    assert [kind for kind in kinds if kind != "progress"] == ["scene", "person", "person", "done"]
    assert kinds.count("progress") >= 4
    assert messages[kinds.index("scene")].fields["picture_size"] == [80, 60]
    expected = FakeRecoverer().recover(np.full((60, 80, 3), 200, np.uint8), hypotheses=3, seed=4)
    for message, person in zip([m for m in messages if m.kind == "person"], expected.people, strict=True):
        np.testing.assert_array_equal(message.arrays["vertices"], person.vertices)
        np.testing.assert_array_equal(message.arrays["tokens"], person.tokens)


def test_boxes_choose_people(running):
    people = [m for m in running().recover(picture(), RecoverParameters(), np.array([[1.0, 2, 3, 4]] * 3))
              if m.kind == "person"]  # fmt: skip
    assert len(people) == 3


def test_those_who_were_found_are_recovered_without_another_search(running):
    told = []

    class Remembering(FakeRecoverer):
        def recover(self, picture, found=None, **others):
            told.extend(found)
            return super().recover(picture, found=found, **others)

    client = running(Remembering())
    (people,) = [m for m in client.find(picture(), FindParameters()) if m.kind == "people"]
    assert people.fields["picture_size"] == [80, 60] and people.arrays["boxes"].shape == (2, 4)
    second = {name: people.arrays[name][1:] for name in protocol.FOUND}
    kinds = [m.kind for m in client.recover(picture(), RecoverParameters(), found=second) if m.kind != "progress"]
    assert kinds == ["scene", "person", "done"]
    (detection,) = told
    np.testing.assert_array_equal(detection.landmarks, people.arrays["landmarks"][1])
    np.testing.assert_array_equal(detection.box, people.arrays["boxes"][1])


def test_who_is_in_a_box(running):
    client = running()
    (people,) = [
        m for m in client.find(picture(), FindParameters(), np.array([[1.0, 2, 30, 40]])) if m.kind == "people"
    ]
    np.testing.assert_array_equal(people.arrays["boxes"], [[1, 2, 30, 40]])
    with pytest.raises(BackendError, match="Nobody is recognised") as refused:
        list(client.find(picture(), FindParameters(), np.array([[1.0, 2, 3, 4]])))
    assert refused.value.status == 422
    assert [m.arrays["boxes"].shape for m in client.find(picture(grey=0), FindParameters()) if m.kind == "people"] == [
        (0, 4)
    ]


def test_resample_goes_on_from_a_persons_state(running):
    client = running()
    person = [m for m in client.recover(picture(), RecoverParameters(hypotheses=2)) if m.kind == "person"][1].arrays
    one = ("tokens", "log_probability", "rotation", "translation", "vertices")
    state = {name: person[name][1:] if name in one else person[name] for name in protocol.PERSON_STATE}
    values = ResampleParameters(hypotheses=4, keep=("left_leg",), picture_width=80, picture_height=60)
    again = [m for m in client.resample(state, values) if m.kind == "person"]
    assert len(again) == 1 and again[0].arrays["vertices"].shape[0] == 4
    np.testing.assert_allclose(again[0].arrays["translation"][0], person["translation"][1])
    del state["tokens"]
    with pytest.raises(BackendError, match="'tokens' is needed") as refused:
        list(client.resample(state, values))
    assert refused.value.status == 422


def test_random(running):
    messages = list(running().random(RandomParameters(count=3, seed=1)))
    assert sum(message.kind == "person" for message in messages) == 3


@pytest.mark.parametrize(
    ("request_message", "status", "sentence"),
    [
        (Message("recover", {}, {"picture": np.frombuffer(b"no picture", np.uint8)}), 422, "not a picture"),
        (Message("recover", {}, {"picture": np.zeros(0, np.uint8)}), 422, "empty"),
        (Message("recover", {}, {}), 422, "'picture' must hold"),
        (Message("recover", {"hypotheses": 101}, {"picture": np.zeros(9, np.uint8)}), 422, "at most 100"),
        (Message("recover", {"seed": "x"}, {"picture": np.zeros(9, np.uint8)}), 422, "'seed' must be"),
        (Message("recover", {}, {"picture": np.zeros(9, np.uint8), "boxes": np.zeros((1, 3))}), 422, "'boxes' must be"),
        (
            Message(
                "recover",
                {},
                {"picture": np.zeros(9, np.uint8), "boxes": np.zeros((2, 4)), "landmarks": np.zeros((1, 33, 3))},
            ),
            422,
            "'landmarks' must be",
        ),
        (Message("find", {"smallest": 2}, {"picture": np.zeros(9, np.uint8)}), 422, "'smallest' must be"),
        (Message("random", {"count": 257}), 422, "at most 256"),
        (Message("recover", {}, {"picture": np.zeros(3 << 20, np.uint8)}), 413, "smaller picture"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_sentence(running, request_message, status, sentence):
    client = running(limits=server.Limits(body_bytes=2 << 20))
    with pytest.raises(BackendError, match=sentence) as refused:
        list(client.stream(request_message))
    assert refused.value.status == status


def test_pictures_with_too_many_pixels_are_refused_before_decoding(running):
    client = running(limits=server.Limits(pixels=1000))
    with pytest.raises(BackendError, match="too large") as refused:
        client.recover(picture(), RecoverParameters())
    assert refused.value.status == 422


def test_bytes_that_are_no_message_are_refused(running):
    client = running()
    connection = http.client.HTTPConnection(client.host, client.port)
    for data in (b"", b"hello", b"MEGA\xff\xff\xff\xff"):
        connection.request("POST", "/recover", data)
        response = connection.getresponse()
        assert response.status == 422 and json.loads(response.read())["detail"]
    connection.close()


def test_closing_the_connection_cancels_the_work_and_the_next_request_is_served(running):
    recoverer = FakeRecoverer(0.05)
    client = running(recoverer)
    stream = client.recover(picture(), RecoverParameters(steps=50))
    with pytest.raises(Stopped):
        for message in stream:
            if message.kind == "progress":
                stream.close()
    done = recoverer.steps_done
    assert any(m.kind == "done" for m in client.recover(picture(), RecoverParameters(steps=1)))
    assert recoverer.steps_done < done + 12


def test_a_request_that_waits_says_so_and_a_full_queue_is_a_503(running):
    client = running(FakeRecoverer(0.05), limits=server.Limits(active=1, waiting=1))
    first = client.recover(picture(), RecoverParameters(steps=20))
    messages = iter(first)  # kept: its end would close the connection
    next(messages)
    second = client.recover(picture(), RecoverParameters(steps=1))
    with pytest.raises(BackendError, match="too much waiting") as refused:
        client.recover(picture(), RecoverParameters())
    assert refused.value.status == 503
    first.close()
    kinds = [message.kind for message in second]
    assert kinds[0] == "queued" and kinds[-1] == "done"


def test_a_fault_in_one_request_is_an_error_there_and_the_server_stays(running):
    class Faulty(FakeRecoverer):
        def random(self, *_, **__):
            raise RuntimeError("secret detail")

    client = running(Faulty())
    with pytest.raises(BackendError, match="log has the cause") as failed:
        list(client.random(RandomParameters()))
    assert failed.value.status == 500 and "secret" not in str(failed.value)
    assert client.health()


def test_token_host_and_origin(running):
    client = running(token="s3cret")
    assert client.health()
    for token in ("", "wrong"):
        with pytest.raises(BackendError, match="token is missing or wrong") as refused:
            Client(client.url, token).health()
        assert refused.value.status == 401

    def status(headers) -> int:
        connection = http.client.HTTPConnection(client.host, client.port)
        connection.putrequest("GET", "/health", skip_host=True)
        for name, value in {"Authorization": "Bearer s3cret", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        code = connection.getresponse().status
        connection.close()
        return code

    own = f"127.0.0.1:{client.port}"
    assert status({"Host": own}) == 200
    assert status({"Host": f"localhost:{client.port}", "Origin": f"http://localhost:{client.port}"}) == 200
    assert status({"Host": "evil.example"}) == 403
    assert status({"Host": own, "Origin": "https://evil.example"}) == 403
    assert status({"Host": own, "Origin": "null"}) == 403


def test_openapi_names_the_endpoints(running):
    client = running()
    connection = http.client.HTTPConnection(client.host, client.port)
    connection.request("GET", "/openapi.json")
    paths = json.loads(connection.getresponse().read())["paths"]
    connection.close()
    assert set(paths) == {*protocol.ENDPOINTS.values(), "/metrics"}


def test_no_backend_there_is_a_sentence():
    with pytest.raises(BackendError, match="No backend answers"):
        Client("http://127.0.0.1:1").health()
    for url in (f"http://{'a' * 70}.invalid", "http://no such name"):
        with pytest.raises(BackendError, match=r"No backend answers at http.*start it or correct"):
            Client(url).health()
    for url in ("", "ftp://x", "http://x:port", "http://[::1"):
        with pytest.raises(BackendError, match="looks like"):
            Client(url)
    for token in ("тайна", "two\nlines"):
        with pytest.raises(BackendError, match="copy it anew"):
            Client("http://127.0.0.1:1", token)


def test_other_addresses_need_a_token_and_a_used_port_says_so(capsys):
    assert server.serve(FakeRecoverer(), "0.0.0.0", 0) == 2
    assert "with a token" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert server.serve(FakeRecoverer(), port=taken.getsockname()[1]) == 2
    assert "running already" in capsys.readouterr().err
    assert server.serve(FakeRecoverer(), port=70_000) == 2
    assert "--port from 0 to 65535" in capsys.readouterr().err
    # 203.0.113.0/24 is nobody's.
    for host in ("nowhere.invalid", "203.0.113.7"):
        assert server.serve(FakeRecoverer(), host, 0, token="s3cret") == 2
        assert "give --host an address of this machine" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["SIGTERM", "stdin", "idle"])
def test_a_server_process_ends_cleanly(how):
    script = (
        "import sys; sys.path.insert(0, 'tests'); from fake_recoverer import FakeRecoverer;"
        "from mega_backend import server; sys.exit(server.serve(FakeRecoverer(), port=0, stop_with_stdin=True,"
        f"idle_timeout={0.3 if how == 'idle' else 0}))"
    )
    with program([sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE) as child:
        assert "listening" in child.stdout.readline()
        url = re.match(r"mega serve: ready at (\S+)", child.stdout.readline()).group(1)
        if how != "idle":
            assert Client(url).health()
        if how == "SIGTERM":
            os.kill(child.pid, signal.SIGTERM)
        elif how == "stdin":
            child.stdin.close()
        assert child.wait(30) == 0  # a busy machine takes its time
