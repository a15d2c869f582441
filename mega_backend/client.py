"""The client of a backend, for the add-on and for scripts: one request, one stream of answers.

NumPy and the standard library only.

    client = Client("http://127.0.0.1:8765", token="…")
    with client.recover(Path("picture.jpg").read_bytes(), RecoverParameters(hypotheses=5)) as stream:
        for message in stream:
            …
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

import numpy as np

from . import protocol, protocol_motion
from .protocol import BodyTopology, Message


class BackendError(Exception):
    """The backend said no, or could not be reached; the text is a sentence for the user.

    `status` is the HTTP status, or 0 where there was no answer at all.
    """

    def __init__(self, text: str, status: int = 0):
        super().__init__(text)
        self.status = status


class Stopped(Exception):
    """The stream was closed from our side."""


class Stream:
    """The answers to one request, as they arrive. `close`, from any thread, cancels the work on the backend too."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse):
        self._connection, self._response = connection, response
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Message]:
        finished = False
        try:
            for message in protocol.read_all(self._response.read):
                if message.kind == "error":
                    raise BackendError(str(message.fields.get("text")), int(message.fields.get("status", 500)))
                finished = message.kind == "done"
                yield message
            if not finished:
                raise BackendError("The backend stopped before it was done; look at its log and try again.")
        except (OSError, http.client.HTTPException, protocol.ProtocolError, ValueError, AttributeError) as error:
            # http.client fails in all of these ways when its socket is shut down under it.
            if self._closed.is_set():
                raise Stopped from error
            raise BackendError(_lost(error)) from error
        finally:
            self._connection.close()

    def close(self) -> None:
        self._closed.set()
        sock = _socket_of(self._connection, self._response)
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # already gone, which is what was wanted

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """A backend at an address."""

    def __init__(self, url: str, token: str = "", timeout: float = 10.0):
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BackendError(f"{url!r} is no address of a backend; it looks like http://127.0.0.1:8765.")
        if not protocol.is_sendable(token):
            raise BackendError("The token has characters that cannot be sent; copy it anew from the backend's file.")
        try:
            self.port = parts.port
        except ValueError as error:
            raise BackendError(f"{url!r} has a port that is none; it looks like http://127.0.0.1:8765.") from error
        self.secure, self.host, self.prefix = parts.scheme == "https", parts.hostname, parts.path.rstrip("/")
        self.url, self.token, self.timeout = url, token, timeout

    def health(self) -> dict:
        """Version, protocol, device, model card. Raises BackendError also where the protocols do not match."""
        connection, response = self._open("GET", "health")
        with _closing(connection):
            data = self._read(response)
        try:
            health = json.loads(data)
        except ValueError:
            health = None
        problem = protocol.compatible(protocol.PROTOCOL, health.get("protocol") if isinstance(health, dict) else None)
        if problem:
            raise BackendError(problem)
        return health

    def body(self, known: BodyTopology | None = None) -> BodyTopology:
        """The body's topology; `known` is given back where the backend still has the same."""
        headers = {"If-None-Match": f'"{known.digest}"'} if known else {}
        connection, response = self._open("GET", "body", headers=headers)
        with _closing(connection):
            if response.status == 304:
                return known
            data = self._read(response)
        try:
            return BodyTopology.of(protocol.decode(data))
        except protocol.ProtocolError as error:
            raise BackendError(str(error)) from error

    def recover(
        self, picture: bytes, values: protocol.RecoverParameters, boxes: np.ndarray | None = None,
        found: dict[str, np.ndarray] | None = None,
    ) -> Stream:  # fmt: skip
        """People in an encoded picture (a file's bytes).

        `boxes` (P,4) in pixels chooses them, `found` (`protocol.FOUND`) are some of those that `find` gave; else all
        are found.
        """
        arrays = {"picture": np.frombuffer(picture, np.uint8)}
        if boxes is not None:
            arrays["boxes"] = np.asarray(boxes, np.float32)
        return self.stream(protocol.request(values, **arrays, **(found or {})))

    def find(self, picture: bytes, values: protocol.FindParameters, boxes: np.ndarray | None = None) -> Stream:
        """Who is in an encoded picture, or in these boxes (P,4) of it: one message `people` with `protocol.FOUND`."""
        arrays = {"picture": np.frombuffer(picture, np.uint8)}
        if boxes is not None:
            arrays["boxes"] = np.asarray(boxes, np.float32)
        return self.stream(protocol.request(values, **arrays))

    def resample(self, person: dict[str, np.ndarray], values: protocol.ResampleParameters) -> Stream:
        """Other hypotheses of one person (`protocol.PERSON_STATE`, one hypothesis) with parts kept."""
        return self.stream(protocol.request(values, **person))

    def random(self, values: protocol.RandomParameters) -> Stream:
        """Bodies out of nothing."""
        return self.stream(protocol.request(values))

    def video(self, values: protocol_motion.VideoParameters, clip: Iterable[Message]) -> Stream:
        """People of a clip, frame by frame; `clip` gives `protocol_motion.part` or `.picture` messages to send.

        What `clip` raises passes through, and ends the request.
        """
        return self.stream(protocol_motion.video_request(values), clip)

    def pose(self, vertices: np.ndarray) -> Stream:
        """The rig in meshes (N,V,3) of the body: a `build` and a `frame` each."""
        return self.stream(Message("pose", arrays={"vertices": np.asarray(vertices, np.float32)}))

    def rig(self) -> protocol_motion.RigTopology:
        """The bones and weights of the body."""
        connection, response = self._open("GET", "rig")
        with _closing(connection):
            data = self._read(response)
        try:
            return protocol_motion.RigTopology.of(protocol.decode(data))
        except protocol.ProtocolError as error:
            raise BackendError(str(error)) from error

    def stream(self, request: Message, more: Iterable[Message] = ()) -> Stream:
        """Send any request, `more` messages after it, and get its answers.

        Raises BackendError with the backend's own sentence.
        """
        headers = {"Content-Type": protocol.CONTENT_TYPE}
        body = protocol.encode(request)
        if more:
            body = itertools.chain([body], (protocol.encode(message) for message in more))
        connection, response = self._open("POST", request.kind, body, headers)
        sock = _socket_of(connection, response)
        if sock is not None:
            # Work may take long. A backend that dies closes its sockets; of a machine that vanishes the system learns.
            sock.settimeout(None)
            _keep_alive(sock)
        return Stream(connection, response)

    def _open(
        self, method: str, name: str, body: bytes | Iterable[bytes] | None = None, headers: dict[str, str] | None = None
    ):
        connection = self._connected()
        try:
            sent = {**(headers or {}), **protocol.bearer(self.token)}
            # A backend that refuses a long upload says why and does not read the rest.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self.prefix + protocol.ENDPOINTS[name], body, sent)
            response = connection.getresponse()
        except (BackendError, Stopped):
            connection.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._no_answer(error) from error
        if response.status not in (200, 304):
            with _closing(connection):
                raise BackendError(_refusal(response), response.status)
        return connection, response

    def _connected(self) -> http.client.HTTPConnection:
        try:
            if self.secure:
                context = ssl.create_default_context()
                connection = http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout, context=context)
            else:
                connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
            connection.connect()
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last of names that cannot be
            raise self._no_answer(error) from error
        return connection

    def _no_answer(self, error: Exception) -> BackendError:
        return BackendError(f"No backend answers at {self.url} ({error}); start it or correct the address.")

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise BackendError(_lost(error)) from error


def _socket_of(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> socket.socket | None:
    """What an answer comes through; the answer alone has it where the other side says that it will close."""
    return connection.sock or getattr(getattr(response.fp, "raw", None), "_sock", None)


def _keep_alive(sock: socket.socket) -> None:
    """Let the system ask after the other side when it has said nothing for long, and give up after two minutes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # The first is called otherwise on macOS.
    for names, value in ((("TCP_KEEPIDLE", "TCP_KEEPALIVE"), 60), (("TCP_KEEPINTVL",), 15), (("TCP_KEEPCNT",), 4)):
        for name in names:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
                break


class _closing:
    def __init__(self, connection: http.client.HTTPConnection):
        self.connection = connection

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def _lost(error: Exception) -> str:
    return (
        f"The connection to the backend was lost ({error}); if it does not answer any more, start it again, "
        "then repeat the request."
    )


def _refusal(response: http.client.HTTPResponse) -> str:
    """The backend's own sentence, or what the status means where something else answered."""
    try:
        detail = json.loads(response.read(1 << 16)).get("detail")
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        detail = None
    if isinstance(detail, str) and detail:
        return detail
    # A proxy, or a cluster whose replica died under the request.
    todo = "try again in a few seconds" if response.status >= 500 else "is it a MEGA backend?"
    return f"The address answers with HTTP {response.status} {response.reason}; {todo}"
