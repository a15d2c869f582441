"""What jobs do about clips and armatures: send, and yield what comes back for the main thread. No bpy here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..mega_backend import protocol_motion
from ..mega_backend.client import BackendError, Stopped, Stream
from ..mega_backend.protocol import Message, ProtocolError
from ..mega_backend.protocol_motion import Build, ClipFacts, Moment, RigTopology, VideoParameters
from .backend.runner import Backend
from .jobs import Job, Progress
from .tasks import BodyKnown

SENDING = 0.05
"""The share of a job's progress that sending the clip is."""


@dataclass(frozen=True)
class RigKnown:
    """The bones of all armatures that follow."""

    rig: RigTopology


def recover_clip(
    backend: Backend, values: VideoParameters, movie: Path | None, pictures: Sequence[tuple[int, Path]], rigged: bool
):  # fmt: skip
    """Work for a job: the people of a movie, or of pictures (number, file); yields `ClipFacts`, `Build`, `Moment`."""

    def work(job: Job) -> Iterator[Any]:
        yield Progress(0.0, "Connecting")
        client = backend.connect(job.cancelled, job.say)
        yield BodyKnown(backend.topology(client), "")
        if rigged:
            yield RigKnown(client.rig())
        clip = _movie(job, movie) if movie is not None else _pictures(job, pictures)
        try:
            yield from _received(job, client.video(values, clip), SENDING)
        except BackendError as error:
            if error.status in (0, 401, 403):
                backend.lost(str(error))
            raise
        backend.worked()
        yield Progress(1.0, "")

    return work


def pose(backend: Backend, vertices: np.ndarray):
    """Work for a job: the rig in one mesh (V,3), camera space; yields its `Build` and `Moment`."""

    def work(job: Job) -> Iterator[Any]:
        yield Progress(0.0, "Connecting")
        client = backend.connect(job.cancelled, job.say)
        yield BodyKnown(backend.topology(client), "")
        yield RigKnown(client.rig())
        yield from _received(job, client.pose(vertices[None]), 0.0)
        backend.worked()

    return work


def _movie(job: Job, path: Path) -> Iterator[Message]:
    try:
        total, sent = max(path.stat().st_size, 1), 0
        with open(path, "rb") as file:
            while data := file.read(protocol_motion.PART_BYTES):
                _go_on(job, sent / total)
                yield protocol_motion.part(data)
                sent += len(data)
    except OSError as error:
        raise BackendError(f"{path} cannot be read ({error.strerror}); choose the clip again.", 422) from error


def _pictures(job: Job, pictures: Sequence[tuple[int, Path]]) -> Iterator[Message]:
    for done, (number, path) in enumerate(pictures):
        _go_on(job, done / len(pictures))
        try:
            data = path.read_bytes()
        except OSError:
            data = b""  # a frame that is missing is bridged, as a damaged one is
        yield protocol_motion.picture(number, data)


def _go_on(job: Job, share: float) -> None:
    if job.cancelled.is_set():
        raise Stopped
    job.fraction = SENDING * share
    job.say(f"sending the clip, {share:.0%}")


def _received(job: Job, stream: Stream, low: float) -> Iterator[Any]:
    kinds = {"clip": ClipFacts, "build": Build, "frame": Moment}
    with job.streaming(stream):
        for message in stream:
            try:
                if message.kind in kinds:
                    yield kinds[message.kind].of(message)
                elif message.kind == "progress":
                    fraction = low + (1 - low) * float(message.fields.get("fraction", 0))
                    yield Progress(fraction, str(message.fields.get("text", "")))
                elif message.kind == "queued":
                    yield Progress(low, f"waiting for {message.fields.get('before', 1)} before this one")
            except ProtocolError as error:
                raise BackendError(str(error)) from error
