"""The recovered bodies drawn over their clip, as a video."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from mega_backend import overlay
from mega_backend.files import OutputError, replacing
from mega_backend.quiet import standard_error_without

from . import outputs

if TYPE_CHECKING:
    from mega_backend.body import Body

    from .clips import Clip
    from .motion import FrameResult

LONGER_SIDE = 1280
_TAG_NOISE = re.compile(rb"OpenCV: FFMPEG: tag ")
"""WebM does not have the four letters by which OpenCV names a codec, which it says and needs not."""


def draw_frame(
    picture: np.ndarray, frame: FrameResult | None, body: Body, focal_length: float, opacity: float = 0.9
) -> np.ndarray:
    """A frame (H, W, 3) uint8 RGB with everybody in it, each in the colour of their number."""
    height, width = picture.shape[:2]
    zoom = min(1.0, LONGER_SIDE / max(width, height))
    # Video codecs want even sides.
    size = tuple(max(2, 2 * round(side * zoom / 2)) for side in (width, height))
    background = picture if size == (width, height) else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if frame is None or not frame.people:
        return background
    with torch.no_grad():
        vertices = body.skin(
            torch.as_tensor(np.stack([person.rotations for person in frame.people])),
            torch.as_tensor(np.stack([person.shape for person in frame.people])),
        ).numpy()
    faces = body.faces.numpy()
    meshes = [
        overlay.Mesh(
            posed + person.translation.astype(np.float32),
            faces,
            overlay.PALETTE[(person.track - 1) % len(overlay.PALETTE)],
        )
        for person, posed in zip(frame.people, vertices, strict=True)
    ]
    return overlay.render(meshes, focal_length * size[0] / width, background, opacity)


def write_overlay(
    results: Sequence[FrameResult],
    clip: Clip,
    body: Body,
    focal_length: float,
    path: str | os.PathLike,
    opacity: float = 0.9,
    progress: Callable[[], None] | None = None,
) -> Path:
    """Draw all results over their frames into a file that ends as one of `outputs.CODECS` says.

    Frames that could not be read show the one before.

    Raises:
        OutputError: the file cannot be written.
    """
    path = outputs.check_overlay(path)
    with replacing(path, path.suffix.lower()) as scratch:
        _write(results, clip, body, focal_length, scratch, opacity, progress)
    return path


def _write(results, clip, body, focal_length, path: str, opacity, progress) -> None:
    by_index = {frame.index: frame for frame in results}
    writer = None
    try:
        for frame in clip:
            if frame.index not in by_index:
                continue
            if frame.picture is not None:
                drawn = draw_frame(frame.picture, by_index[frame.index], body, focal_length, opacity)[..., ::-1]
                if writer is None:
                    writer = _open(path, clip.rate / clip.step, (drawn.shape[1], drawn.shape[0]))
                writer.write(np.ascontiguousarray(drawn))
            elif writer is not None:
                writer.write(np.ascontiguousarray(drawn))
            if progress is not None:
                progress()
    finally:
        if writer is not None:
            writer.release()
    if writer is None:
        raise OutputError("there is no frame to draw on")


def _open(path: str, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    code = cv2.VideoWriter_fourcc(*outputs.CODECS[Path(path).suffix])
    with standard_error_without(_TAG_NOISE):
        writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, code, rate, size)
    if not writer.isOpened():
        raise OutputError(f"this OpenCV makes no {Path(path).suffix} files: choose another ending")
    return writer
