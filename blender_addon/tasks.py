"""What jobs do: talk to the backend and yield events for the main thread. No bpy here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..mega_backend.client import BackendError, Stream
from ..mega_backend.protocol import (
    BodyTopology,
    Message,
    RandomParameters,
    RecoverParameters,
    ResampleParameters,
)
from .backend.runner import Backend
from .jobs import Failed, Job, Progress


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
    """A message of the backend: `scene` or `person`."""

    message: Message


def recover(backend: Backend, pictures: Sequence[Path], values: RecoverParameters, boxes: np.ndarray | None = None):
    """Work for a job: the people in pictures, one picture after the other. A bad picture does not stop the others."""

    def work(job: Job) -> Iterator[Any]:
        yield Progress(0.0, "Connecting")
        client = backend.connect(job.cancelled, job.say)
        yield BodyKnown(backend.topology(client), _model_name(backend))
        for index, picture in enumerate(pictures):
            low, high = index / len(pictures), (index + 1) / len(pictures)
            name = f"{picture.name}: " if len(pictures) > 1 else ""
            people = 0
            try:
                data = picture.read_bytes()
            except OSError as error:
                yield Failed(f"{picture} cannot be read ({error.strerror}); choose the picture again.", str(picture))
                continue
            yield Progress(low, f"{name}sending")
            try:
                yield Begun(picture)
                for event in _received(job, client.recover(data, values, boxes), low, high, name):
                    people += isinstance(event, Received) and event.message.kind == "person"
                    yield event
            except BackendError as error:
                if error.status in (0, 401, 403):
                    backend.lost(str(error))
                    raise
                yield Failed(f"{picture.name}: {error}", str(picture))
                continue
            yield Ended(picture, people)
        yield Progress(1.0, "")

    return work


def resample(backend: Backend, person: dict[str, np.ndarray], values: ResampleParameters, picture: Path | None = None):
    """Work for a job: other hypotheses of one person, found in `picture`."""

    def work(job: Job) -> Iterator[Any]:
        yield Progress(0.0, "Connecting")
        client = backend.connect(job.cancelled, job.say)
        yield BodyKnown(backend.topology(client), _model_name(backend))
        # Most models go on from the landmarks; one that looks at the picture itself needs it again.
        if picture is not None and backend.state.reads != "landmarks" and picture.is_file():
            person["picture"] = np.frombuffer(picture.read_bytes(), np.uint8)
        yield from _received(job, client.resample(person, values), 0.0, 1.0, "")

    return work


def random(backend: Backend, values: RandomParameters):
    """Work for a job: people out of nothing."""

    def work(job: Job) -> Iterator[Any]:
        yield Progress(0.0, "Connecting")
        client = backend.connect(job.cancelled, job.say)
        yield BodyKnown(backend.topology(client), _model_name(backend))
        yield from _received(job, client.random(values), 0.0, 1.0, "")

    return work


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
            elif message.kind in ("scene", "person"):
                yield Received(message)
