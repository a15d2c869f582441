"""The backend as a service: pictures in, streams of people out, over HTTP on loopback by default.

`create_app` makes the application around anything with the interface of `mega_backend.recovery.Recoverer`; `serve` runs
it. One worker thread owns the model: requests wait their turn in a bounded queue, report progress while they run, and
stop within one step when their connection closes.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import ipaddress
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from . import Cancelled, __version__, pictures, protocol
from .protocol import Message, ProtocolError, RandomParameters, RecoverParameters, ResampleParameters
from .result import Person, Recovery, ResultError

log = logging.getLogger("mega.server")

Progress = Callable[[float, str], None]
Work = Callable[[Any, Progress], Iterator[Message]]

PROGRESS_INTERVAL = 0.05
"""Seconds between two progress messages of one request; more often only costs."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many may wait. Over a limit: 413, 422, 429 or 503 and a sentence."""

    body_bytes: int = 128 << 20
    pixels: int = 100_000_000
    hypotheses: int = 100
    random: int = 256
    boxes: int = 64
    waiting: int = 32


class Busy(Exception):
    """The queue is full."""


class Job:
    """One request on its way through the worker; its messages arrive on the event loop."""

    def __init__(self, work: Work):
        self.work = work
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()

    def put(self, message: Message | None) -> None:
        """From the worker's thread: a message, or None at the end."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._messages.put_nowait, message)

    async def messages(self) -> AsyncIterator[Message]:
        while (message := await self._messages.get()) is not None:
            yield message


class Worker:
    """The thread that owns the model and does one job after the other."""

    def __init__(self, recoverer: Any, waiting: int):
        self.recoverer = recoverer
        self.running = False
        self.last_active = time.monotonic()
        self._jobs: queue.Queue[Job | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name="mega-worker", daemon=True)
        self._current: Job | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Cancel what runs and what waits, and end the thread."""
        if self._current is not None:
            self._current.cancelled.set()
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.put(None)
        self._jobs.put(None)

    @property
    def waiting(self) -> int:
        return self._jobs.qsize()

    def submit(self, job: Job) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy from None
        if self.running:
            job.put(Message("queued", {"before": self.waiting}))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._current, self.running = job, True
            try:
                self._do(job)
            finally:
                job.put(None)
                self._current, self.running = None, False
                self.last_active = time.monotonic()

    def _do(self, job: Job) -> None:
        latest = 0.0

        def progress(fraction: float, text: str = "") -> None:
            nonlocal latest
            if job.cancelled.is_set():
                raise Cancelled
            now = time.monotonic()
            if now - latest >= PROGRESS_INTERVAL or fraction >= 1:
                latest = now
                job.put(Message("progress", {"fraction": min(1.0, max(0.0, float(fraction))), "text": str(text)}))

        started = time.monotonic()
        try:
            progress(0.0, "")
            for message in job.work(self.recoverer, progress):
                job.put(message)
            job.put(Message("done", {"seconds": time.monotonic() - started}))
        except Cancelled:
            log.info("request cancelled after %.1f s", time.monotonic() - started)
        except (ValueError, ProtocolError) as error:
            job.put(Message("error", {"status": 422, "text": _sentence(error)}))
        except Exception:
            # Whatever one request does, the server stays up; the cause goes to the log, not to the client.
            log.exception("request failed")
            text = "The backend failed on this request; its log has the cause."
            job.put(Message("error", {"status": 500, "text": text}))


class Gate:
    """Lets in who may come in: the right token, and no web page in somebody's browser.

    A page can make a browser send requests to loopback; it cannot hide its Origin, and a rebound name shows in Host.
    """

    def __init__(self, app: ASGIApp, token: str = "", loopback: bool = True):
        self.app, self.loopback = app, loopback
        self.expected = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self._refusal(headers)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, text = refusal
        extra = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        await JSONResponse({"detail": text}, status, extra)(scope, receive, send)

    def _refusal(self, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        if self.loopback and _host_name(host) not in ("127.0.0.1", "localhost", "::1"):
            return 403, "This backend answers on loopback only; use http://127.0.0.1 and its port."
        if origin is not None and origin.split(b"//", 1)[-1] != host:
            return 403, "Requests from web pages of other sites are refused."
        if self.expected and not hmac.compare_digest(headers.get(b"authorization", b""), self.expected):
            return 401, "The token is missing or wrong; copy the one that the backend was started with."
        return None


def _host_name(host: bytes) -> str:
    text = host.decode("latin-1")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _sentence(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


# ----------------------------------------------------------------------------------------------------------------------
# What the endpoints do, on the worker's thread


def recover_work(values: RecoverParameters, picture: np.ndarray, boxes: np.ndarray | None) -> Work:
    """People of a decoded picture (H,W,3)."""

    def work(recoverer: Any, progress: Progress) -> Iterator[Message]:
        extra = {} if boxes is None else {"boxes": boxes}
        recovery = recoverer.recover(
            picture, hypotheses=values.hypotheses, seed=values.seed, steps=values.steps,
            temperature=values.temperature, progress=progress, **extra,
        )  # fmt: skip
        yield from result_messages(recovery)

    return work


def resample_work(values: ResampleParameters, recovery: Recovery, picture: np.ndarray | None) -> Work:
    """Other hypotheses of one person; a model that looks at the picture itself needs it again."""

    def work(recoverer: Any, progress: Progress) -> Iterator[Message]:
        extra = {} if picture is None else {"picture": picture}
        again = recoverer.resample(
            recovery, keep=list(values.keep), hypotheses=values.hypotheses, seed=values.seed, steps=values.steps,
            temperature=values.temperature, progress=progress, **extra,
        )  # fmt: skip
        yield from result_messages(again)

    return work


def random_work(values: RandomParameters) -> Work:
    def work(recoverer: Any, progress: Progress) -> Iterator[Message]:
        recovery = recoverer.random(
            values.count, seed=values.seed, steps=values.steps, temperature=values.temperature, progress=progress
        )
        yield from result_messages(recovery)

    return work


def recovery_of(values: ResampleParameters, message: Message) -> Recovery:
    """The result with one person and one hypothesis that a resampling request is about.

    Raises ProtocolError where its arrays do not belong together.
    """
    arrays = message.arrays
    missing = [name for name in protocol.PERSON_STATE if name not in arrays]
    if missing:
        raise ProtocolError(f"To sample a person again its {missing[0]!r} is needed.")
    state = {name: arrays[name].astype(np.uint16 if name == "tokens" else np.float32) for name in protocol.PERSON_STATE}
    vertices = state["vertices"].shape[1] if state["vertices"].ndim == 3 else 0
    try:
        person = Person(**state, joints=np.zeros((1, 0, 3), np.float32), spread=np.zeros(vertices, np.float32))
    except ResultError as error:
        raise ProtocolError(_sentence(error)) from error
    size = (values.picture_width, values.picture_height)
    return Recovery(size, values.focal_length, [person], np.zeros((0, 3), np.int32))


def result_messages(recovery: Recovery) -> Iterator[Message]:
    """A result as messages: the scene, then every person."""
    yield protocol.scene_message(recovery)
    for index, person in enumerate(recovery.people):
        yield protocol.person_message(index, person)


# ----------------------------------------------------------------------------------------------------------------------
# The application


def create_app(recoverer: Any, *, token: str = "", loopback: bool = True, limits: Limits | None = None) -> FastAPI:
    """The application. Its worker starts and stops with it (ASGI lifespan).

    Args:
        recoverer: has `recover`, `resample`, `random`, `body`, as `mega_backend.recovery.Recoverer`.
        token: every request must carry it, where it is not empty.
        loopback: served on loopback, so that only loopback names are accepted in Host.
        limits: bounds on requests.
    """
    limits = limits or Limits()
    worker = Worker(recoverer, limits.waiting)
    topology = protocol.topology_of(recoverer.body)
    body, tag = protocol.encode(topology.message()), f'"{topology.digest}"'
    decoding = asyncio.Semaphore(2)

    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    app = FastAPI(
        title="MEGA Mesh Recovery", version=__version__, docs_url=None, redoc_url=None, lifespan=_manager(lifespan)
    )
    app.state.worker = worker
    app.add_middleware(Gate, token=token, loopback=loopback)

    async def decoded(data: np.ndarray | None) -> np.ndarray:
        """A picture that was sent as the bytes of a file; few at a time, for each may need much memory."""
        if data is None or data.dtype != np.uint8 or data.ndim != 1:
            raise ProtocolError("'picture' must hold the bytes of a picture file (uint8).")
        async with decoding:
            try:
                return await asyncio.to_thread(pictures.read, data.tobytes(), limits.pixels)
            except pictures.PictureError as error:
                raise HTTPException(422, _sentence(error)) from error

    @app.exception_handler(ProtocolError)
    async def _(_: Request, error: ProtocolError) -> JSONResponse:
        return JSONResponse({"detail": _sentence(error)}, 422)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Version, protocol number, device, model, and how busy the backend is."""
        return {
            "name": "MEGA Mesh Recovery", "version": __version__, "protocol": protocol.PROTOCOL,
            "device": str(getattr(recoverer, "device", "cpu")), "model": _model_card(recoverer),
            "body": topology.digest, "running": worker.running, "waiting": worker.waiting,
        }  # fmt: skip

    @app.get("/body", response_class=Response)
    def get_body(request: Request) -> Response:
        """The body's topology as one message; its hash is the ETag."""
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        return Response(body, media_type=protocol.CONTENT_TYPE, headers=headers)

    openapi = {
        "requestBody": {"required": True, "content": {protocol.CONTENT_TYPE: {"schema": {"type": "string",
                                                                                         "format": "binary"}}}},
        "responses": {
            "200": {"description": "a stream of messages", "content": {protocol.CONTENT_TYPE: {}}},
            **{str(status): {"description": text} for status, text in (
                (401, "no or a wrong token"), (413, "the body is too large"), (422, "wrong parameters or picture"),
                (503, "the queue is full; Retry-After says when to come back"))},
        },
    }  # fmt: skip

    @app.post("/recover", response_class=StreamingResponse, openapi_extra=openapi)
    async def recover(request: Request) -> Response:
        """The people in a picture."""
        message = await _message(request, "recover", limits)
        values = protocol.parameters(RecoverParameters, message.fields)
        _at_most("hypotheses", values.hypotheses, limits.hypotheses)
        boxes = _boxes(message, limits)
        picture = await decoded(message.arrays.get("picture"))
        return await _answer(worker, request, recover_work(values, picture, boxes))

    @app.post("/resample", response_class=StreamingResponse, openapi_extra=openapi)
    async def resample(request: Request) -> Response:
        """Other hypotheses of a person, with parts kept."""
        message = await _message(request, "resample", limits)
        values = protocol.parameters(ResampleParameters, message.fields)
        _at_most("hypotheses", values.hypotheses, limits.hypotheses)
        picture = await decoded(message.arrays["picture"]) if "picture" in message.arrays else None
        return await _answer(worker, request, resample_work(values, recovery_of(values, message), picture))

    @app.post("/random", response_class=StreamingResponse, openapi_extra=openapi)
    async def random(request: Request) -> Response:
        """Bodies out of nothing."""
        values = protocol.parameters(RandomParameters, (await _message(request, "random", limits)).fields)
        _at_most("count", values.count, limits.random)
        return await _answer(worker, request, random_work(values))

    return app


def _manager(lifespan: Callable[[FastAPI], AsyncIterator[None]]) -> Callable:
    from contextlib import asynccontextmanager

    return asynccontextmanager(lifespan)


def _model_card(recoverer: Any) -> dict[str, Any]:
    card = getattr(recoverer, "card", {})
    return dict(card() if callable(card) else card)


def _at_most(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise HTTPException(422, f"{name!r} may be at most {limit} on this backend; ask for fewer.")


def _boxes(message: Message, limits: Limits) -> np.ndarray | None:
    boxes = message.arrays.get("boxes")
    if boxes is None:
        return None
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind != "f" or not np.isfinite(boxes).all():
        raise ProtocolError("'boxes' must be (P,4) finite numbers: x0, y0, x1, y1 in pixels.")
    _at_most("boxes", len(boxes), limits.boxes)
    return boxes.astype(np.float64)


async def _message(request: Request, kind: str, limits: Limits) -> Message:
    """The request's one message, read with a bound on its size."""
    too_large = HTTPException(413, f"The request is over {limits.body_bytes >> 20} MiB; send a smaller picture.")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limits.body_bytes:
        raise too_large
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limits.body_bytes:
            raise too_large
    message = protocol.decode(bytes(data), limits.body_bytes)
    if message.kind != kind:
        raise ProtocolError(f"A message of kind {kind!r} belongs here, not {message.kind[:40]!r}.")
    return message


async def _answer(worker: Worker, request: Request, work: Work) -> Response:
    """Queue the work and stream its messages; the end of the connection cancels it."""
    job = Job(work)
    try:
        worker.submit(job)
    except Busy:
        text = "The backend has too much waiting already; try again in a few seconds."
        raise HTTPException(503, text, {"Retry-After": "5"}) from None

    async def stream() -> AsyncIterator[bytes]:
        try:
            async for message in job.messages():
                yield protocol.encode(message)
        finally:
            job.cancelled.set()

    return StreamingResponse(stream(), media_type=protocol.CONTENT_TYPE)


# ----------------------------------------------------------------------------------------------------------------------
# Serving


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(file: str | None) -> str:
    """The token from a file, or else from MEGA_TOKEN; never from the command line, which other users can see."""
    if file is None:
        return os.environ.get("MEGA_TOKEN", "").strip()
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SystemExit(f"mega serve: the token file cannot be read ({error}).") from error
    if not token:
        raise SystemExit(f"mega serve: {file} is empty; write a long random token into it.")
    return token


class _Server(uvicorn.Server):
    """Says when it is ready, and ends when it was idle for long or its parent is gone."""

    def __init__(self, config: uvicorn.Config, worker: Worker, url: str, idle_timeout: float):
        super().__init__(config)
        self.worker, self.url, self.idle_timeout = worker, url, idle_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"mega serve: ready at {self.url}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        worker = self.worker
        idle = 0.0 if worker.running or worker.waiting else time.monotonic() - worker.last_active
        if 0 < self.idle_timeout < idle:
            log.warning("idle for %.0f s: stopping", self.idle_timeout)
            self.should_exit = True
        return await super().on_tick(counter)


def serve(
    recoverer: Any, host: str = "127.0.0.1", port: int = 8765, token: str = "", idle_timeout: float = 0.0,
    stop_with_stdin: bool = False, limits: Limits | None = None,
) -> int:  # fmt: skip
    """Serve until told to stop; returns the exit code.

    Prints `mega serve: ready at URL` once it answers. Port 0 takes a free one. `stop_with_stdin` ends the server when
    its standard input closes: a parent that dies, however it dies, leaves nothing behind.
    """
    if not is_loopback(host) and not token:
        print("mega serve: other machines may only connect with a token; give --token-file or set MEGA_TOKEN.",
              file=sys.stderr)  # fmt: skip
        return 2
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        print(f"mega serve: {host}:{port} cannot be used ({error.strerror}); is a backend running already? "
              "Choose another --port.", file=sys.stderr)  # fmt: skip
        return 2
    name = f"[{host}]" if family == socket.AF_INET6 else host
    url = f"http://{name}:{listener.getsockname()[1]}"
    app = create_app(recoverer, token=token, loopback=is_loopback(host), limits=limits)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=3, server_header=False
    )
    server = _Server(config, app.state.worker, url, idle_timeout)
    # uvicorn raises the signal again after an orderly end; with these in place that is exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    if stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
    server.run(sockets=[listener])
    return 0


def _stop_with_stdin(server: uvicorn.Server) -> None:
    # Not through sys.stdin, whose lock a thread that waits here would hold when the interpreter ends.
    while os.read(0, 4096):
        continue
    server.should_exit = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mega serve`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (other than loopback: with a token)")
    parser.add_argument("--port", type=int, default=8765, help="port; 0 takes a free one and prints it")
    parser.add_argument("--model", default="default", help='"default" or a model folder')
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--token-file", help="file with the token that clients must send (or MEGA_TOKEN)")
    parser.add_argument("--idle-timeout", type=float, default=0.0, metavar="SECONDS", help="stop when idle for so long")
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input closes")


def main(arguments: argparse.Namespace) -> int:
    """`mega serve`."""
    token = read_token(arguments.token_file)
    if not is_loopback(arguments.host) and not token:
        return serve(None, arguments.host)  # says why before a model is loaded
    import mega_backend

    print("mega serve: loading the model", flush=True)
    recoverer = mega_backend.load(arguments.model, device=arguments.device)
    return serve(recoverer, arguments.host, arguments.port, token, arguments.idle_timeout, arguments.stop_with_stdin)
