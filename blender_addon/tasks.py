"""What jobs do: talk to the backend and yield events for the main thread. No bpy here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..mega_backend.client import BackendError, Client, Stream
from ..mega_backend.protocol import (
    FOUND,
    BodyTopology,
    FindParameters,
    Message,
    RandomParameters,
    RecoverParameters,
    ResampleParameters,
)
from . import mending
from .backend.runner import Backend
from .jobs import Failed, Job, Progress
from .mending import Trouble


@dataclass(frozen=True)
class BodyKnown:
    """The topology of all meshes that follow."""

    topology: BodyTopology
    model: str


@dataclass(frozen=True)
class Begun:
    """The results that follow are of this picture."""

    picture: Path


@dataclass(frozen=True)
class Ended:
    """A picture is done; so many people were in it."""

    picture: Path
    people: int


@dataclass(frozen=True)
class Received:
    """A message of the backend: `scene`, `person` or `people`."""

    message: Message


@dataclass(frozen=True)
class Found:
    """Who was found in a picture: its size, and `protocol.FOUND`."""

    picture_size: tuple[int, int]
    people: dict[str, np.ndarray]


def recover(
    backend: Backend, pictures: Sequence[Path], values: RecoverParameters, found: dict[str, np.ndarray] | None = None
):
    """Work for a job: the people in pictures, one picture after the other. A bad picture does not stop the others.

    `found` are those people of the one picture that are wanted; else all are looked for.
    """

    def work(job: Job) -> Iterator[Any]:
        yield from _begin(backend, job)
        for index, picture in enumerate(pictures):
            low, high = index / len(pictures), (index + 1) / len(pictures)
            name = f"{picture.name}: " if len(pictures) > 1 else ""
            people = 0
            try:
                data = picture.read_bytes()
            except OSError as error:
                yield _unreadable(picture, error)
                continue
            yield Progress(low, f"{name}sending")
            try:
                yield Begun(picture)
                ask = partial(Client.recover, picture=data, values=values, found=found)
                for event in _answers(backend, job, ask, low, high, name):
                    people += isinstance(event, Received) and event.message.kind == "person"
                    yield event
            except BackendError as error:
                if error.status in (0, 401, 403):
                    backend.lost(str(error))
                    raise
                yield Failed(f"{name}{error}", str(picture), None if name else mending.PICTURE)
                continue
            yield Ended(picture, people)
        yield Progress(1.0, "")

    return work


def find(backend: Backend, picture: Path, values: FindParameters, boxes: np.ndarray | None = None):
    """Work for a job: who is in a picture, or in these boxes (P,4) of it."""

    def work(job: Job) -> Iterator[Any]:
        yield Progress(0.0, "Connecting")
        try:
            data = picture.read_bytes()
        except OSError as error:
            yield _unreadable(picture, error)
            return
        for event in _answers(backend, job, partial(Client.find, picture=data, values=values, boxes=boxes)):
            if isinstance(event, Received):
                people = {name: event.message.arrays[name] for name in FOUND}
                yield Found(tuple(event.message.fields["picture_size"]), people)
            else:
                yield event

    return work


def resample(backend: Backend, person: dict[str, np.ndarray], values: ResampleParameters, picture: Path | None = None):
    """Work for a job: other hypotheses of one person, found in `picture`."""

    def work(job: Job) -> Iterator[Any]:
        yield from _begin(backend, job)
        # Most models go on from the landmarks; one that looks at the picture itself needs it again.
        if picture is not None and backend.state.reads != "landmarks" and picture.is_file():
            person["picture"] = np.frombuffer(picture.read_bytes(), np.uint8)
        yield from _answers(backend, job, partial(Client.resample, person=person, values=values))

    return work


def random(backend: Backend, values: RandomParameters):
    """Work for a job: people out of nothing."""

    def work(job: Job) -> Iterator[Any]:
        yield from _begin(backend, job)
        yield from _answers(backend, job, partial(Client.random, values=values))

    return work


def _unreadable(picture: Path, error: OSError) -> Failed:
    text = f"{picture} cannot be read ({error.strerror}); it was moved or removed: choose the picture again."
    return Failed(text, str(picture), mending.PICTURE)


def _begin(backend: Backend, job: Job) -> Iterator[Any]:
    """Reach the backend and learn the body that its answers are made of."""
    yield Progress(0.0, "Connecting")
    client = backend.connect(job.cancelled, job.say)
    yield BodyKnown(backend.topology(client), _model_name(backend))


def _answers(
    backend: Backend, job: Job, ask: Callable[[Client], Stream], low: float = 0.0, high: float = 1.0, name: str = ""
) -> Iterator[Any]:
    """What the backend answers to one request, as progress from `low` to `high`.

    A local backend that dies meanwhile is started and asked once more; the same request has the same answer, so that
    what came before is not given again. If it dies again, that is the error.
    """
    given = 0
    for attempt in (1, 2):
        client = backend.connect(job.cancelled, job.say)
        skip = given
        try:
            for event in _received(job, ask(client), low, high, name):
                if isinstance(event, Received):
                    skip -= 1
                    if skip >= 0:
                        continue
                    given += 1
                yield event
            backend.worked()
            return
        except BackendError as error:
            if job.cancelled.is_set() or not backend.died(client, error):
                raise
            if attempt == 2:
                raise Trouble(backend.last_words(), mending.LOG) from error
            yield Progress(low, f"{name}the backend stopped, it is started again")


def _model_name(backend: Backend) -> str:
    return str(((backend.state.health or {}).get("model") or {}).get("name", ""))


def _received(job: Job, stream: Stream, low: float, high: float, name: str) -> Iterator[Any]:
    with job.streaming(stream):
        for message in stream:
            if message.kind == "progress":
                fraction = low + (high - low) * float(message.fields.get("fraction", 0))
                yield Progress(fraction, name + str(message.fields.get("text", "")))
            elif message.kind == "queued":
                yield Progress(low, f"{name}waiting for {message.fields.get('before', 1)} before this one")
            elif message.kind in ("scene", "person", "people"):
                yield Received(message)
