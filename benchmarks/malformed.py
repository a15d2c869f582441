"""Requests that are wrong in every way that comes to mind: few of them for the tests, many for the benchmark."""

from __future__ import annotations

import http.client
import io
import json
import socket
import struct
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from mega_backend import protocol, protocol_motion
from mega_backend.protocol import Message, RandomParameters, RecoverParameters
from mega_backend.protocol_motion import VideoParameters

WORK = ("recover", "resample", "random", "find", "video", "pose")
"""Endpoints that take a message."""

ACCEPTED = {200, 304, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 422, 431, 503}
"""What a malformed request may be answered with; 200 where it turns out to be well-formed."""


@dataclass(frozen=True)
class Attempt:
    """One request; `cut` ends the connection after so many bytes of it."""

    method: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    cut: int | None = None


def picture(kind: str = "PNG", size: tuple[int, int] = (24, 16), grey: int = 200) -> bytes:
    """The bytes of a small picture file."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (grey,) * 3).save(buffer, kind)
    return buffer.getvalue()


def announcing(size: tuple[int, int]) -> bytes:
    """A PNG of a few bytes that says it is this large: a decompression bomb's head."""
    import zlib

    header = struct.pack(">II5B", *size, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = zlib.compress(bytes(3 * 1000))
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    )  # fmt: skip


FOREIGN = [b"%!PS-Adobe-3.0 EPSF", b"<svg/>", b"PK\x03\x04", b"\x80\x04]q\x00.", b"BM", b"II*\0"]
"""Beginnings of other files, a pickle among them."""

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_names = st.sampled_from(
    ["seed", "steps", "temperature", "hypotheses", "count", "keep", "focal_length", "picture_width"]
)
_fields = st.dictionaries(_names | st.text(max_size=8), _json, max_size=4)
_shapes = st.lists(st.integers(0, 5), max_size=4)


@st.composite
def _arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = st.sampled_from(["picture", "boxes", *protocol.PERSON_STATE, "data", "other"])
    chosen = draw(st.lists(names, unique=True, max_size=9))
    made = {}
    for name in chosen:
        kind = draw(st.sampled_from(sorted(protocol.ARRAY_TYPES)))
        array = np.zeros(draw(_shapes), kind)
        if array.size and kind.startswith("<f") and draw(st.booleans()):
            array.flat[0] = draw(st.sampled_from([np.nan, np.inf, -1.0, 1e30])) if kind != "<f2" else np.nan
        made[name] = array
    return made


def _bytes_of(kind: str, fields: dict, arrays: dict[str, np.ndarray]) -> bytes:
    """A message whose header may hold anything that JSON knows, NaN included."""
    parts = []
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
        parts.append((name, buffer.getvalue()))
    listing = [[name, len(data)] for name, data in parts]
    header = json.dumps({"kind": kind, "fields": fields, "arrays": listing}).encode()
    return b"MEGA" + struct.pack("<I", len(header)) + header + b"".join(data for _, data in parts)


@st.composite
def _pictures(draw: st.DrawFn) -> bytes:
    """Broken, cut, changed, foreign and huge pictures."""
    kind = draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    choice = draw(st.integers(0, 5))
    if choice == 0:
        return announcing((draw(st.integers(1, 2**31 - 1)), draw(st.integers(1, 2**31 - 1))))
    if choice == 1:
        return draw(st.sampled_from(FOREIGN))
    data = bytearray(picture(kind))
    if choice == 2:
        return bytes(data[: draw(st.integers(0, len(data)))])
    for _ in range(draw(st.integers(1, 8))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@st.composite
def _clips(draw: st.DrawFn) -> bytes:
    """Clips of broken pictures and of what is no video, of playlists that name files, parts and pictures mixed."""
    playlists = [b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"]
    stumps = [b"\0\0\0\x18ftypmp42" + bytes(40), b"RIFF\xff\xff\xff\x7fAVI LIST" + bytes(40), b"\x1a\x45\xdf\xa3"]
    films = [*FOREIGN, *playlists, *stumps]
    messages = [protocol_motion.video_request(VideoParameters(hypotheses=1, steps=1, stop=draw(st.integers(0, 3))))]
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            messages.append(protocol_motion.picture(draw(st.integers(-1, 3)), draw(_pictures())))
        else:
            messages.append(protocol_motion.part(draw(st.sampled_from(films) | st.binary(max_size=60))))
    data = b"".join(protocol.encode(message) for message in messages)
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 3)) == 0 else data


@st.composite
def _bodies(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(WORK))
    choice = draw(st.integers(0, 6))
    if choice == 0:
        return draw(st.binary(max_size=200))
    if choice == 6:
        return draw(_clips())
    if choice == 1:
        return b"MEGA" + struct.pack("<I", draw(st.integers(0, 2**32 - 1))) + draw(st.binary(max_size=60))
    if choice == 2:
        return _bytes_of(kind, draw(_fields), draw(_arrays()))
    if choice == 3:
        header = json.dumps(draw(_json)).encode()
        return b"MEGA" + struct.pack("<I", len(header)) + header
    data = np.frombuffer(draw(_pictures()), np.uint8)
    body = protocol.encode(protocol.request(RecoverParameters(hypotheses=2, steps=1), picture=data))
    if choice == 4:
        return body
    changed = bytearray(body)
    for _ in range(draw(st.integers(1, 6))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    """A malformed request."""
    work = [f"/{name}" for name in WORK]
    others = ["/health", "/body", "/rig", "/metrics", "/", "/../etc/passwd", "/%00", "/none"]
    path = draw(st.sampled_from([*work, *work, *work, *others]))
    method = draw(st.sampled_from(["POST", "POST", "POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD"]))
    body = draw(_bodies())
    headers = draw(
        st.lists(
            st.sampled_from(
                [
                    ("Content-Type", protocol.CONTENT_TYPE), ("Content-Type", "text/plain"), ("Origin", "null"),
                    ("Content-Type", "multipart/form-data; boundary=x"), ("Origin", "http://evil.example"),
                    ("If-None-Match", '"x"'), ("Authorization", "Basic ÿ"), ("Accept-Encoding", "gzip"),
                    ("Content-Length", "-1"), ("Content-Length", "99999999999999"), ("Content-Length", "9" * 400),
                    ("Content-Length", str(len(body) + 5)), ("Transfer-Encoding", "chunked"), ("X-Long", "a" * 3000),
                ]
            ),
            max_size=2, unique_by=lambda pair: pair[0],
        )
    )  # fmt: skip
    cut = draw(st.none() | st.none() | st.integers(0, 300))
    return Attempt(method, path, body, tuple(headers), cut)


def send(port: int, attempt: Attempt, timeout: float = 20.0) -> int | None:
    """Make the attempt on a connection of its own; the status, or None where nothing came back.

    Raises AssertionError for an answer that a client must never see.
    """
    headers = dict(attempt.headers)
    headers.setdefault("Content-Length", str(len(attempt.body)))
    lines = [f"{attempt.method} {attempt.path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + attempt.body
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        if attempt.cut is not None:
            connection.sendall(data[: attempt.cut])
            return None
        try:
            connection.sendall(data)
            # What is still to come does not come: the server must not wait for it for ever.
            connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection, method=attempt.method)
            response.begin()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            return None  # refused by closing
    assert response.status in ACCEPTED, f"{attempt}: {response.status} {answer[:200]!r}"
    if response.status == 503:
        assert response.getheader("Retry-After"), attempt
    if response.status >= 400 and attempt.method != "HEAD" and response.getheader("Content-Type") == "application/json":
        assert json.loads(answer)["detail"], attempt
    if response.getheader("Content-Type") == protocol.CONTENT_TYPE and attempt.path[1:] in WORK:
        for message in protocol.read_all(io.BytesIO(answer).read):
            if message.kind == "error":
                assert message.fields["status"] == 422, f"{attempt}: {message.fields}"
    return response.status


def request_for(number: int) -> Message:
    """A well-formed request, so that good ones run among the bad."""
    if number % 2:
        return protocol.request(RandomParameters(count=1, seed=number, steps=1))
    return protocol.request(RecoverParameters(hypotheses=2, steps=1), picture=np.frombuffer(picture(), np.uint8))
