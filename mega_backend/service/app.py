"""The application: endpoints, what they accept, and the streams that they answer with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Receive, Scope, Send

from mega_backend import __version__, pictures, protocol
from mega_backend.batching import Batcher
from mega_backend.protocol import (
    FindParameters,
    Message,
    ProtocolError,
    RandomParameters,
    RecoverParameters,
    ResampleParameters,
)
from mega_backend.result import LANDMARKS, Person, Recovery, ResultError
from mega_backend.service import logs, memory, openapi
from mega_backend.service.gate import Gate
from mega_backend.service.jobs import Jobs, Progress, Work, sentence
from mega_backend.service.limits import Held, Limits
from mega_backend.service.metrics import Metrics
from mega_backend.service.model import Model
from mega_backend.service.page import add_page
from mega_backend.service.spool import Shelf
from mega_backend.service.streams import Upload
from mega_backend.service.video import add_video

POLLED = ("/health", "/metrics")
"""Endpoints whose good answers are not worth a line in the log."""
DECODED_TOGETHER = 2
"""Pictures that are decoded at the same time."""


class Health(BaseModel):
    """How the backend is."""

    name: str
    version: str
    protocol: int
    status: str
    """loading, ready or failed"""
    progress: float
    """of loading, in [0, 1]"""
    text: str
    device: str
    model: dict[str, Any]
    reads: str
    """what the model looks at: "landmarks" that were found, or the "picture" itself"""
    body: str
    """hash of the body's topology"""
    running: int
    waiting: int


class State:
    """What the endpoints of one application share."""

    def __init__(self, model: Model, batcher: Batcher, metrics: Metrics, limits: Limits) -> None:
        self.model, self.batcher, self.metrics, self.limits = model, batcher, metrics, limits
        self.jobs = Jobs(lambda: model.recoverer, batcher, limits.active, limits.waiting)
        self.jobs.ended = lambda job: metrics.results.labels(job.endpoint, job.end).inc()
        self.held = Held(limits.held_bytes, "holds too many large pictures")
        self.shelf = Shelf(limits)
        self.uploads = 0
        """Requests whose bodies are arriving."""
        self.decoding = asyncio.Semaphore(DECODED_TOGETHER)
        metrics.gauge("mega_running", "Requests that are worked on", lambda: self.jobs.running)
        metrics.gauge("mega_waiting", "Requests that wait for their turn", lambda: self.jobs.waiting)
        metrics.gauge("mega_held_bytes", "Uploads and decoded pictures in memory", lambda: self.held.bytes)
        metrics.gauge("mega_spooled_bytes", "Clips on disk", lambda: self.shelf.held.bytes)
        metrics.gauge("mega_out_of_memory", "Times that the device was out of memory", lambda: batcher.out_of_memory)
        metrics.gauge("mega_ready", "1 once the model is loaded", lambda: model.status == "ready")


def create_app(
    model: Any, *, token: str = "", loopback: bool = True, limits: Limits | None = None, batcher: Batcher | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:  # fmt: skip
    """The application. Its threads start and end with it (ASGI lifespan).

    Args:
        model: a recoverer (`recover`, `resample`, `random`, `body`, `card`, `device`), or a `Model` that loads one;
            give the latter's batcher too.
        token: every request must carry it, where it is not empty.
        loopback: served on loopback, so that only loopback names are accepted in Host.
        limits: bounds on requests.
    """
    limits = limits or Limits()
    metrics = metrics or Metrics()
    batcher = batcher or Batcher()
    batcher.observe = metrics.batch
    if not isinstance(model, Model):
        recoverer, model = model, Model(lambda _: recoverer, batcher)
        model.set(recoverer)
    state = State(model, batcher, metrics, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(state.shelf.tidy)
        batcher.start()
        state.jobs.start()
        if model.status == "loading":
            model.start()
        tidying = asyncio.create_task(memory.give_back_at_rest(state.jobs))
        yield
        tidying.cancel()
        await state.jobs.drain(0)
        state.jobs.stop()
        batcher.stop()
        state.shelf.close()

    app = FastAPI(
        title="MEGA Mesh Recovery", version=__version__, description=openapi.DESCRIPTION, docs_url=None, redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    app.state.mega = state
    app.add_middleware(Gate, token=token, loopback=loopback)
    app.add_middleware(Watch, metrics=metrics)  # outermost: who is refused at the gate is counted too
    _add_errors(app)
    _add_information(app, state)
    _add_work(app, state)
    add_video(app, state)
    add_page(app)
    app.openapi = lambda: openapi.schema(app)
    return app


# ----------------------------------------------------------------------------------------------------------------------
# Endpoints


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ProtocolError)
    async def _(_: Request, error: ProtocolError) -> JSONResponse:
        return JSONResponse({"detail": sentence(error)}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def _(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": "The request's parameters are not what this endpoint takes."}, 422)

    @app.exception_handler(Exception)
    async def _(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "The backend failed on this request; its log has the cause."}, 500)


def _add_information(app: FastAPI, state: State) -> None:
    model = state.model

    @app.get("/health", responses=openapi.refusals(401, 403))
    async def health() -> Health:
        """Version, protocol number, device, model, and how busy the backend is. Answers while the model is loading."""
        return Health(
            name="MEGA Mesh Recovery", version=__version__, protocol=protocol.PROTOCOL, status=model.status,
            progress=model.progress, text=model.text, device=model.device, model=model.card, reads=model.reads,
            body=model.body, running=state.jobs.running, waiting=state.jobs.waiting,
        )  # fmt: skip

    @app.get("/body", response_class=Response, responses=openapi.BODY | openapi.refusals(401, 403, 503))
    async def body(request: Request) -> Response:
        """The body's topology as one message; its hash is the ETag."""
        model.check()
        tag = f'"{model.body}"'
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(model.topology_bytes, media_type=protocol.CONTENT_TYPE, headers=headers)

    @app.get("/metrics", response_class=Response, responses=openapi.METRICS | openapi.refusals(401, 403))
    async def metrics() -> Response:
        """What the backend counts, for Prometheus."""
        return Response(state.metrics.page(), headers={"Content-Type": state.metrics.content_type})


def _add_work(app: FastAPI, state: State) -> None:
    limits = state.limits
    options = {
        "response_class": Response,
        "responses": openapi.STREAM | openapi.refusals(401, 403, 408, 413, 415, 422, 503),
    }

    @app.post("/recover", openapi_extra=openapi.request_of(RecoverParameters), **options)
    async def recover(request: Request) -> Response:
        """The people in a picture."""
        async with Upload(request, state) as upload:
            message = await upload.message("recover")
            values = protocol.parameters(RecoverParameters, message.fields)
            _at_most("hypotheses", values.hypotheses, limits.hypotheses)
            people = _people(message, limits)
            picture = await _decoded(message, state)
            focal_length = await asyncio.to_thread(pictures.focal_length, message.arrays["picture"].tobytes())
            if focal_length is not None:
                people["focal_length"] = focal_length
            del message
            upload.lease.resize(picture.nbytes)
            return upload.answer(recover_work(values, picture, people))

    @app.post("/find", openapi_extra=openapi.request_of(FindParameters), **options)
    async def find(request: Request) -> Response:
        """Who is in a picture, to choose from."""
        async with Upload(request, state) as upload:
            message = await upload.message("find")
            values = protocol.parameters(FindParameters, message.fields)
            boxes = _boxes(message, limits)
            picture = await _decoded(message, state)
            del message
            upload.lease.resize(picture.nbytes)
            return upload.answer(find_work(values, picture, boxes))

    @app.post("/resample", openapi_extra=openapi.request_of(ResampleParameters), **options)
    async def resample(request: Request) -> Response:
        """Other hypotheses of a person, with parts kept."""
        async with Upload(request, state) as upload:
            message = await upload.message("resample")
            values = protocol.parameters(ResampleParameters, message.fields)
            _at_most("hypotheses", values.hypotheses, limits.hypotheses)
            recovery = recovery_of(values, message)
            picture = await _decoded(message, state) if "picture" in message.arrays else None
            held = [*vars(recovery.people[0]).values(), picture]
            del message
            upload.lease.resize(sum(array.nbytes for array in held if array is not None))
            return upload.answer(resample_work(values, recovery, picture))

    @app.post("/random", openapi_extra=openapi.request_of(RandomParameters), **options)
    async def random(request: Request) -> Response:
        """Bodies out of nothing."""
        async with Upload(request, state) as upload:
            values = protocol.parameters(RandomParameters, (await upload.message("random")).fields)
            _at_most("count", values.count, limits.random)
            return upload.answer(random_work(values))


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


def _people(message: Message, limits: Limits) -> dict[str, Any]:
    """Who is to be recovered, as an argument of `Recoverer.recover`: in these boxes, or found before; else nothing."""
    boxes = _boxes(message, limits)
    rest = [message.arrays.get(name) for name in protocol.FOUND[1:]]
    if all(each is None for each in rest):
        return {} if boxes is None else {"boxes": boxes}
    for name, array in zip(protocol.FOUND[1:], rest, strict=True):
        shape = (0 if boxes is None else len(boxes), LANDMARKS, 3)
        # The detector's own estimate may be missing, which is written as NaN.
        fits = array is not None and array.dtype.kind == "f" and array.shape == shape
        if not fits or not (name == "landmarks_3d" or np.isfinite(array).all()):
            raise ProtocolError(
                f"{name!r} must be (P,{LANDMARKS},3) finite numbers beside 'boxes' (P,4), as /find gave."
            )
    from mega_backend.people import Detection

    arrays = [each.astype(np.float32) for each in (boxes, *rest)]
    return {"found": [Detection(*person, score=1.0) for person in zip(*arrays, strict=True)]}


async def _decoded(message: Message, state: State) -> np.ndarray:
    data = message.arrays.get("picture")
    if data is None or data.dtype != np.uint8 or data.ndim != 1:
        raise ProtocolError("'picture' must hold the bytes of a picture file (uint8).")
    async with state.decoding:
        try:
            return await asyncio.to_thread(pictures.read, data.tobytes(), state.limits.pixels)
        except pictures.PictureError as error:
            raise HTTPException(422, sentence(error)) from error


def recovery_of(values: ResampleParameters, message: Message) -> Recovery:
    """The result with one person and one hypothesis that a resampling request is about.

    Raises ProtocolError where its arrays do not belong together.
    """
    state = {}
    for name in protocol.PERSON_STATE:
        array = message.arrays.get(name)
        if array is None:
            raise ProtocolError(f"To sample a person again its {name!r} is needed.")
        if name == "tokens":
            if array.dtype.kind not in "iu" or array.min(initial=0) < 0 or array.max(initial=0) > 65535:
                raise ProtocolError("'tokens' must be whole numbers from 0 to 65535.")
            state[name] = array.astype(np.uint16)
        else:
            # The detector's own estimate may be missing, which is written as NaN.
            if array.dtype.kind != "f" or not (name == "landmarks_3d" or np.isfinite(array).all()):
                raise ProtocolError(f"{name!r} must be finite floating-point numbers.")
            state[name] = array.astype(np.float32)
    if state["tokens"].ndim != 2 or len(state["tokens"]) != 1:
        raise ProtocolError("Send the one hypothesis that the others should go on from: 'tokens' must be (1, T).")
    vertices = state["vertices"].shape[1] if state["vertices"].ndim == 3 else 0
    try:
        person = Person(**state, joints=np.zeros((1, 0, 3), np.float32), spread=np.zeros(vertices, np.float32))
    except ResultError as error:
        raise ProtocolError(sentence(error)) from error
    size = (values.picture_width, values.picture_height)
    return Recovery(size, values.focal_length, [person], np.zeros((0, 3), np.int32))


# ----------------------------------------------------------------------------------------------------------------------
# What the endpoints do, on a job's thread


def recover_work(values: RecoverParameters, picture: np.ndarray, people: dict[str, Any]) -> Work:
    """People of a decoded picture (H,W,3); `people` is what else `Recoverer.recover` is told of them."""

    def work(recoverer: Any, progress: Progress) -> Iterator[Message]:
        recovery = recoverer.recover(
            picture, hypotheses=values.hypotheses, seed=values.seed, steps=values.steps,
            temperature=values.temperature, progress=progress, **people,
        )  # fmt: skip
        yield from result_messages(recovery)

    return work


def find_work(values: FindParameters, picture: np.ndarray, boxes: np.ndarray | None) -> Work:
    """Who is in a decoded picture (H,W,3)."""

    def work(recoverer: Any, progress: Progress) -> Iterator[Message]:
        found = recoverer.find(picture, boxes=boxes, smallest=values.smallest, progress=progress)
        yield protocol.people_message((picture.shape[1], picture.shape[0]), found)

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
    """People out of nothing."""

    def work(recoverer: Any, progress: Progress) -> Iterator[Message]:
        recovery = recoverer.random(
            values.count, seed=values.seed, steps=values.steps, temperature=values.temperature, progress=progress
        )
        yield from result_messages(recovery)

    return work


def result_messages(recovery: Recovery) -> Iterator[Message]:
    """A result as messages: the scene, then every person."""
    yield protocol.scene_message(recovery)
    for index, person in enumerate(recovery.people):
        yield protocol.person_message(index, person)


# ----------------------------------------------------------------------------------------------------------------------


class Watch:
    """ASGI middleware that counts and logs requests: endpoint, status, time; nothing of what they carry."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, sent = time.monotonic(), 0, 0

        async def counted(message: dict) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            # Paths that do not exist would let clients invent names without end.
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            seconds = time.monotonic() - started
            self.metrics.requests.labels(endpoint, status).inc()
            self.metrics.seconds.labels(endpoint).observe(seconds)
            # Pages and Prometheus ask every few seconds.
            level = logging.DEBUG if endpoint in POLLED and status == 200 else logging.INFO
            logs.event("request", level, endpoint=endpoint, status=status, seconds=seconds, sent=sent)
