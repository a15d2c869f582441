"""Clips: looked at frame by frame, streamed out as people that move. And rigs of single meshes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

from mega_backend import protocol, protocol_motion
from mega_backend.protocol import Message, ProtocolError
from mega_backend.protocol_motion import Build, ClipFacts, Moment, PoseParameters, VideoParameters
from mega_backend.service import openapi
from mega_backend.service.jobs import Progress, Work, sentence
from mega_backend.service.limits import Lease, Limits
from mega_backend.service.spool import Spool, too_large, too_many
from mega_backend.service.streams import Upload

if TYPE_CHECKING:
    from mega_backend.service.app import State

BUILD_CHANGE = 0.001
"""Metres: a body that has changed by less in the mean is not sent again."""


def add_video(app: FastAPI, state: State) -> None:
    """The endpoints /video, /pose and /rig."""
    options = {
        "response_class": Response,
        "responses": openapi.STREAM | openapi.refusals(401, 403, 408, 413, 415, 422, 503),
    }

    @app.post("/video", openapi_extra=openapi.request_of(VideoParameters), **options)
    async def video(request: Request) -> Response:
        """The people of a clip, frame by frame."""
        async with Upload(request, state) as upload:
            spool = Spool(state.limits, state.shelf)
            try:
                values = await _clip(upload, spool, state.limits)
                return upload.answer(video_work(values, spool, state.limits, upload.lease), spool.remove)
            except BaseException:
                spool.remove()
                raise

    @app.post("/pose", openapi_extra=openapi.request_of(PoseParameters), **options)
    async def pose(request: Request) -> Response:
        """The rig in meshes of the body."""
        async with Upload(request, state) as upload:
            message = await upload.message("pose")
            protocol.parameters(PoseParameters, message.fields)
            vertices = message.arrays.get("vertices")
            if vertices is None or vertices.dtype.kind != "f" or vertices.ndim != 3 or vertices.shape[2] != 3:
                raise ProtocolError("'vertices' must be (N,V,3) numbers: meshes of the body.")
            if not 1 <= len(vertices) <= state.limits.hypotheses or not np.isfinite(vertices).all():
                raise ProtocolError(f"'vertices' must be finite, and 1 to {state.limits.hypotheses} meshes.")
            return upload.answer(pose_work(vertices.astype(np.float32)))

    @lru_cache(maxsize=1)
    def encoded_rig(body: Any) -> bytes:
        return protocol.encode(protocol_motion.rig_topology(body).message())

    @app.get("/rig", response_class=Response, responses=openapi.RIG | openapi.refusals(401, 403, 422, 503))
    async def rig() -> Response:
        """The bones and weights of the body as one message."""
        try:
            body = state.model.recoverer.rig.body
        except ValueError as error:
            raise HTTPException(422, sentence(error)) from error
        return Response(await asyncio.to_thread(encoded_rig, body), media_type=protocol.CONTENT_TYPE)


# ----------------------------------------------------------------------------------------------------------------------
# In


async def _clip(upload: Upload, spool: Spool, limits: Limits) -> VideoParameters:
    """Read the whole request; its parameters."""
    values = None
    async for message in upload.messages(limits.video_bytes):
        if values is None:
            if message.kind != "video":
                raise ProtocolError(f"A message of kind 'video' comes first here, not {message.kind[:40]!r}.")
            values = protocol.parameters(VideoParameters, message.fields)
            if values.hypotheses > limits.hypotheses:
                text = f"'hypotheses' may be at most {limits.hypotheses} on this backend; ask for fewer."
                raise HTTPException(422, text)
            if values.stop and values.stop <= values.start:
                raise HTTPException(422, "The range of frames is empty: 'stop' must lie after 'start'.")
        else:
            await asyncio.to_thread(spool.add, message)
    if values is None or spool.folder is None:
        raise ProtocolError("The request holds no clip.")
    return values


# ----------------------------------------------------------------------------------------------------------------------
# Out, on a job's thread


def video_work(values: VideoParameters, spool: Spool, limits: Limits, lease: Lease) -> Work:
    """The people of a clip. `lease` is for the frames that are in memory at the same time."""

    def work(recoverer: Any, progress: Progress) -> Iterator[Message]:
        from mega_backend.video.clips import Clip, ClipError
        from mega_backend.video.motion import MotionOptions
        from mega_backend.video.recover import MOST_FRAMES

        body = recoverer.rig.body
        progress(0.0, "opening the clip")
        try:
            if spool.indices is None:
                _check_size(spool.source, limits)
                clip = Clip(spool.source, values.start, values.stop or None, values.step, values.rate or None)
            else:
                clip = Clip(spool.source, rate=values.rate or None)
        except ClipError as error:
            # Where the backend keeps it is not the client's business.
            raise ClipError(str(error).replace(f"'{spool.source}'", "the clip")) from error
        if (clip.count or 0) > limits.frames:
            raise ValueError(too_many(limits))
        lease.resize(MOST_FRAMES * 3 * clip.size[0] * clip.size[1])
        options = MotionOptions(
            values.hypotheses, values.seed, values.steps, values.temperature, smoothing=values.smoothing
        )
        focal_length = values.focal_length or _usual_focal_length(clip.size)
        yield ClipFacts(clip.size, focal_length, clip.rate, clip.count or 0).message()
        builds: dict[int, np.ndarray] = {}
        frames = recoverer.recover_video(clip, options=options, focal_length=focal_length, progress=progress)
        for number, frame in enumerate(frames):
            if number >= limits.frames:
                raise ValueError(too_many(limits))
            for person in frame.people:
                yield from _build(body, person.track, person.shape, builds)
            index = frame.index if spool.indices is None else spool.indices[frame.index]
            yield moment(body, index, frame.time, frame.people, values.meshes).message()

    return work


def pose_work(vertices: np.ndarray) -> Work:
    """The rig in meshes (N,V,3), as frames of one person."""

    def work(recoverer: Any, progress: Progress) -> Iterator[Message]:
        import torch

        rig = recoverer.rig
        if vertices.shape[1] != rig.body.vertex_count:
            raise ValueError(f"these meshes have {vertices.shape[1]} vertices, the body {rig.body.vertex_count}")
        progress(0.0, "finding the bones")
        with torch.no_grad():
            pose = rig.fit(torch.from_numpy(vertices), steps=6)
            heads = rig.body.heads(pose.shape)
            turned = pose.rotations @ rig.body.t_pose(heads)
            root = heads[:, 0] + pose.translation
            fitted = pose.vertices(rig.body)
        builds: dict[int, np.ndarray] = {}
        for index in range(len(vertices)):
            builds.clear()
            yield from _build(rig.body, 1, pose.shape[index].numpy(), builds)
            person = {
                "track": np.int32(1), "rotations": turned[index].numpy(), "root": root[index].numpy(),
                "vertices": fitted[index].numpy(), "box": np.full(4, np.nan, np.float32), "hypothesis": np.int32(index),
            }  # fmt: skip
            arrays = protocol_motion.stacked([person], rig.body.joint_count)
            yield Moment(index, float(index), **arrays).message()

    return work


def moment(body: Any, index: int, time: float, people: list[Any], meshes: bool) -> Moment:
    """A `FrameResult`'s people (`TrackedPerson`) as they travel."""
    import torch

    arrays = []
    for person in people:
        shape = torch.as_tensor(person.shape, dtype=torch.float32)[None]
        with torch.no_grad():
            root = body.heads(shape)[0, 0].numpy() + person.translation
            turned = person.rotations @ body.t_pose(body.heads(shape))[0].numpy()
            vertices = np.zeros((0, 3), np.float32)
            if meshes:
                rotations = torch.as_tensor(person.rotations, dtype=torch.float32)[None]
                vertices = body.skin(rotations, shape)[0].numpy() + person.translation.astype(np.float32)
        arrays.append(
            {"track": np.int32(person.track), "rotations": turned, "root": root, "vertices": vertices,
             "box": person.box, "hypothesis": np.int32(person.hypothesis)}
        )  # fmt: skip
    return Moment(index, time, **protocol_motion.stacked(arrays, body.joint_count))


def _build(body: Any, track: int, shape: np.ndarray, known: dict[int, np.ndarray]) -> Iterator[Message]:
    """The body of a track, where it is new or has changed."""
    import torch

    with torch.no_grad():
        vertices, heads = (part[0].numpy() for part in body.rest(torch.as_tensor(shape, dtype=torch.float32)[None]))
    before = known.get(track)
    if before is None or np.linalg.norm(vertices - before, axis=1).mean() > BUILD_CHANGE:
        known[track] = vertices
        yield Build(track, vertices, heads).message()


def _check_size(path: Path, limits: Limits) -> None:
    """Refuse a file of huge frames before one is decoded."""
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    width, height = (int(capture.get(each)) for each in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    capture.release()
    if width * height > limits.video_pixels:
        raise ValueError(too_large(width, height))


def _usual_focal_length(size: tuple[int, int]) -> float:
    from mega_backend import camera

    return camera.default_focal_length(size)
