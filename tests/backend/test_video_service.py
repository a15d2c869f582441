"""Clips through the service: uploaded in parts or as pictures, answered frame by frame, bounded, cancelled at once."""

import dataclasses
import json
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from fake_motion import FakeMotion, pose
from fake_recoverer import FakeRecoverer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from movies import SIZE, movie, sequence
from waiting import program, until

from mega_backend import protocol, protocol_motion, server
from mega_backend.client import BackendError, Client, Stopped
from mega_backend.protocol import Message
from mega_backend.protocol_motion import Build, ClipFacts, Moment, VideoParameters
from mega_backend.service import jobs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def motion():
    return FakeMotion()


@pytest.fixture(scope="module")
def serving():
    servers = []

    def start(recoverer, **limits):
        listener = socket.create_server(("127.0.0.1", 0))
        app = server.create_app(recoverer, limits=server.Limits(**limits))
        instance = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=instance.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        servers.append((instance, thread, listener))
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        client.app = app
        return client

    yield start
    for instance, thread, listener in servers:
        instance.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="module")
def client(motion, serving):
    return serving(motion)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return movie(tmp_path_factory.mktemp("film") / "walk.mp4")


def parts(path, size=700):
    data = Path(path).read_bytes()
    return [protocol_motion.part(data[at : at + size]) for at in range(0, len(data), size)]


def asked(client, values, clip):
    with client.video(values, clip) as stream:
        return list(stream)


def of_kind(messages, kind):
    return [message for message in messages if message.kind == kind]


def test_a_movie_comes_back_frame_by_frame(client, film, motion, monkeypatch):
    # However fast the machine is: every word of the work's progress is passed on.
    monkeypatch.setattr(jobs, "PROGRESS_INTERVAL", 0.0)
    messages = asked(client, VideoParameters(start=2, stop=11, step=2), parts(film))
    (facts,) = (ClipFacts.of(message) for message in of_kind(messages, "clip"))
    assert facts.size == SIZE and facts.rate == 12.5 and facts.count == 5 and facts.focal_length > 100
    moments = [Moment.of(message) for message in of_kind(messages, "frame")]
    assert [moment.index for moment in moments] == [2, 4, 6, 8, 10]
    assert [moment.time for moment in moments] == pytest.approx([moment.index / 12.5 for moment in moments], abs=1e-3)
    assert [moment.track.tolist() for moment in moments] == [[1], [1], [1, 2], [1], [1]]
    assert messages[-1].kind == "done" and "s left" in of_kind(messages, "progress")[-1].fields["text"]
    # What travels is what was recovered: the mesh of the pose, with the root bone's head where it is said to be.
    expected = motion._person(2, 6)
    shape = torch.as_tensor(expected.shape)[None]
    skinned = motion.body.skin(torch.as_tensor(expected.rotations)[None], shape)[0].numpy() + expected.translation
    np.testing.assert_allclose(moments[2].vertices[1], skinned, atol=1e-5)
    turned = pose(motion.body, 2, 6) @ motion.body.t_pose(motion.body.heads(shape))[0].numpy()
    np.testing.assert_allclose(moments[2].rotations[1], turned, atol=1e-5)


def test_build_and_rig_say_how_the_mesh_follows_the_bones(client, film):
    """Linear blend skinning in NumPy, from what travels alone, gives the vertices that travel."""
    messages = asked(client, VideoParameters(stop=6), parts(film))
    builds = {build.track: build for build in map(Build.of, of_kind(messages, "build"))}
    kinds = [message.kind for message in messages if message.kind in ("build", "frame")]
    assert kinds[0] == "build" and kinds.count("build") == 2  # bodies that stay as they are travel once
    rig = client.rig()
    assert rig.names[0] == "root" and rig.weights.sum(1) == pytest.approx(1, abs=1e-5)
    for moment in map(Moment.of, of_kind(messages, "frame")):
        for number, track in enumerate(moment.track):
            build, turns = builds[track], moment.rotations[number]
            heads = np.empty_like(build.heads)
            heads[0] = moment.root[number]
            for joint, parent in enumerate(rig.parents[1:], 1):
                heads[joint] = heads[parent] + turns[parent] @ (build.heads[joint] - build.heads[parent])
            local = build.vertices[:, None] - build.heads[rig.joints]
            moved = np.einsum("vkxy,vky->vkx", turns[rig.joints], local) + heads[rig.joints]
            skinned = (rig.weights[..., None] * moved).sum(1)
            assert np.abs(skinned - moment.vertices[number]).max() < 2e-4


def test_frames_without_meshes_are_light(client, film):
    messages = asked(client, VideoParameters(stop=4, meshes=False), parts(film))
    moments = [Moment.of(message) for message in of_kind(messages, "frame")]
    assert moments[0].vertices.shape == (1, 0, 3) and moments[0].rotations.shape == (1, 60, 3, 3)


def test_a_sequence_keeps_its_numbers_and_bridges_a_broken_picture(client, tmp_path):
    paths = sequence(tmp_path / "shots", 5)
    paths[2].write_bytes(b"no picture")
    clip = [protocol_motion.picture(7 + 3 * number, path.read_bytes()) for number, path in enumerate(paths)]
    moments = [Moment.of(m) for m in of_kind(asked(client, VideoParameters(rate=10.0), clip), "frame")]
    assert [moment.index for moment in moments] == [7, 10, 13, 16, 19]
    assert [moment.time for moment in moments] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_a_mesh_gets_the_rig_that_it_came_from(client, motion):
    vertices = motion.recover(np.full((60, 80, 3), 9), hypotheses=3, seed=4).people[0].vertices
    with client.pose(vertices) as stream:
        messages = list(stream)
    moments = [Moment.of(message) for message in of_kind(messages, "frame")]
    assert len(moments) == len(of_kind(messages, "build")) == 3
    for moment, mesh in zip(moments, vertices, strict=True):
        assert np.linalg.norm(moment.vertices[0] - mesh, axis=1).mean() < 0.01


def test_bad_clips_are_refused_with_a_sentence(client, serving, motion, film, tmp_path):
    clip, first = parts(film), [protocol_motion.picture(0, sequence(tmp_path / "a", 1)[0].read_bytes())]
    small = serving(motion, video_bytes=1000)
    tiny = serving(motion, video_pixels=1000)
    cases = [
        (client, VideoParameters(), [protocol_motion.part(b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n")], "MP4"),
        (client, VideoParameters(), [protocol_motion.part(b"\0\0\0\x20ftypisom" + b"x" * 99)], "MP4"),
        (client, VideoParameters(), [], "no clip"),
        (client, VideoParameters(start=500), clip, "start before"),
        (client, VideoParameters(start=5, stop=5), clip, "range of frames is empty"),
        (client, VideoParameters(), [*clip, *first], "not as both"),
        (client, VideoParameters(), [*first, *first], "growing whole numbers"),
        (client, VideoParameters(), [Message("person")], "not 'person'"),
        (client, dataclasses.replace(VideoParameters(), smoothing="much"), clip, "off, light, strong"),
        (client, dataclasses.replace(VideoParameters(), meshes=1), clip, "true or false"),
        (small, VideoParameters(), [protocol_motion.part(b"\0\0\0\x20ftyp" + b"x" * 2000)], "send a shorter"),
        (serving(motion, frames=4), VideoParameters(), clip, "at most 4 frames"),
        (serving(motion, hypotheses=3), VideoParameters(hypotheses=4), clip, "at most 3"),
        (tiny, VideoParameters(), clip, "too large"),
        (tiny, VideoParameters(), first, "too large"),
        (client, VideoParameters(start=500), clip, "^The clip has only"),
        (serving(FakeRecoverer()), VideoParameters(), clip, "rig"),
    ]
    for where, values, sent, sentence in cases:
        with pytest.raises(BackendError, match=sentence) as caught:
            asked(where, values, sent)
        assert caught.value.status in (413, 422), sentence
    assert len(of_kind(asked(client, VideoParameters(), clip), "frame")) == 12
    for where in (client, small, tiny):
        until(lambda state=where.app.state.mega: state.shelf.held.bytes == state.held.bytes == 0)


def test_frames_in_memory_count_and_a_trickle_is_given_up(serving, motion, film):
    narrow = serving(motion, held_bytes=100_000)
    with pytest.raises(BackendError, match="too many large pictures") as refused:
        asked(narrow, VideoParameters(), parts(film))
    assert refused.value.status == 503
    state = narrow.app.state.mega
    until(lambda: state.held.bytes == state.shelf.held.bytes == 0)

    def trickle():
        for part in parts(film):
            yield part
            time.sleep(0.2)

    with pytest.raises(BackendError, match="too slow") as refused:
        asked(serving(motion, upload_seconds=0.1, slowest=1 << 20), VideoParameters(), trickle())
    assert refused.value.status == 408


def test_nothing_stays_on_disk(serving, motion, film, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client = serving(motion)
    shelf, made = client.app.state.mega.shelf, []
    folder = shelf.folder
    monkeypatch.setattr(shelf, "folder", lambda: made.append(folder()) or made[-1])
    asked(client, VideoParameters(), parts(film))
    with pytest.raises(BackendError):
        asked(client, VideoParameters(start=500), parts(film))

    def cut():
        yield from parts(film)[:2]
        until(lambda: len(made) == 3)
        raise Stopped

    with pytest.raises(Stopped):
        client.video(VideoParameters(), cut())
    until(lambda: client.app.state.mega.jobs.idle and not any(folder.exists() for folder in made))
    assert len(made) == 3 and all(folder.is_relative_to(tmp_path) for folder in made)
    shelf.close()
    assert list(tmp_path.iterdir()) == []


def test_closing_the_connection_stops_the_work_within_a_second(serving, film):
    slow = FakeMotion(0.5)
    client = serving(slow)
    stream = client.video(VideoParameters(), parts(film))
    messages = iter(stream)
    while next(messages).kind != "frame":
        continue
    done = slow.frames
    stream.close()
    until(lambda: client.app.state.mega.jobs.idle)
    # Two frames are a second's work, however busy the machine is.
    assert slow.frames <= done + 2 < 12 and client.app.state.mega.shelf.held.bytes == 0


def test_openapi_shows_the_parameters(client):
    schema = json.loads(json.dumps(client.app.openapi()))["components"]["schemas"]["VideoParameters"]["properties"]
    assert schema["smoothing"]["enum"] == ["off", "light", "strong"] and schema["meshes"]["type"] == "boolean"


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=40), max_size=4), st.integers(1, 50))
def test_messages_are_taken_whole_however_they_arrive(contents, size):
    sent = [protocol_motion.picture(number, data) for number, data in enumerate(contents)]
    data = b"".join(protocol.encode(message) for message in sent)
    buffer, taken = bytearray(), []
    for at in range(0, len(data), size):
        buffer += data[at : at + size]
        while (message := protocol.take(buffer)) is not None:
            taken.append(message)
    assert not buffer and [m.arrays["picture"].tobytes() for m in taken] == contents


@pytest.mark.parametrize("data", [b"NOPE\0\0\0\0", b"MEGA\xff\xff\xff\xff", b"MEGA\x02\0\0\0{}"])
def test_bytes_that_are_no_message_are_refused_as_they_arrive(data):
    with pytest.raises(protocol.ProtocolError):
        protocol.take(bytearray(data))


@pytest.mark.skipif(sys.platform == "win32", reason="locks there are others")
def test_clips_of_a_backend_that_was_killed_are_removed_by_the_next(tmp_path, monkeypatch, serving):
    script = (
        "import os, sys, time\n"
        "from mega_backend.service import limits, spool\n"
        "shelf = spool.Shelf(limits.Limits())\n"
        "(shelf.folder() / 'clip').write_bytes(b'somebody')\n"
        "print('kept', flush=True)\n"
        "time.sleep(600)"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "others").mkdir()
    with program([sys.executable, "-c", script], cwd=ROOT) as process:
        assert process.stdout.readline() == "kept\n"
        (clip,) = tmp_path.glob("*/*/clip")
        serving(FakeRecoverer()).health()
        assert clip.exists(), "that of a backend which lives was taken"
    serving(FakeRecoverer()).health()
    assert [path.name for path in tmp_path.iterdir()] == ["others"]
