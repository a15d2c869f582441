"""What the released sequences of 3DPW and EMDB need on their way to an evaluation npz: cameras, boxes, tables."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.spatial.transform import Rotation

from mega_backend import foreign
from mega_backend.checkpoint import CheckpointError
from train.data.annotations import AnnotationError, Annotations


def read_pickle(path: Path) -> dict[str, Any]:
    """A released sequence as a dictionary, without running any code in the file."""
    try:
        content = foreign.read_mapping(path)
    except (CheckpointError, OSError) as error:
        raise AnnotationError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{path} holds a {type(content).__name__}, not the dictionary of a released sequence.")
    return content


def field(content: dict[str, Any], path: Path, *keys: str) -> Any:
    """content[key][key]…, or AnnotationError naming what is missing."""
    value: Any = content
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise AnnotationError(f"{path} has no {'/'.join(keys)}: is it a released sequence?")
        value = value[key]
    return value


def in_camera(root: np.ndarray, extrinsics: np.ndarray) -> np.ndarray:
    """Root rotations (F, 3) of the world in the camera's frame (F, 3); extrinsics (F, 4, 4) take world to camera."""
    return (Rotation.from_matrix(extrinsics[:, :3, :3]) * Rotation.from_rotvec(root)).as_rotvec()


def project(points: np.ndarray, extrinsics: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """World points (F, J, 3) → pixels and confidence (F, J, 3); confidence 0 behind the camera."""
    camera = np.einsum("fij,fkj->fki", extrinsics[:, :3, :3], points) + extrinsics[:, None, :3, 3]
    depth = camera[..., 2:]
    ahead = depth[..., 0] > 1e-6
    pixels = (camera / np.where(ahead[..., None], depth, 1)) @ intrinsics.T
    return np.concatenate([pixels[..., :2], ahead[..., None]], -1)


def smooth_boxes(joints: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Box centres (F, 2) and sides (F) of 2D joints (F, J, 3) over time.

    The person's height is the diagonal of the box round its joints, the box side 4/3 of it (150 of 200 pixels in the
    published crops); frames in which nobody is `seen` (F) are bridged, then centre and inverse side are median-filtered
    (11 frames) and smoothed (Gaussian, 8 frames).
    """
    if not seen.any():
        raise AnnotationError("No frame shows this person.")
    known = np.where(joints[..., 2:] > 0, joints[..., :2], np.nan)
    frames = np.flatnonzero(seen)
    low, high = np.nanmin(known[frames], 1), np.nanmax(known[frames], 1)
    numbers = np.column_stack([(low + high) / 2, 150 / np.linalg.norm(high - low, axis=1)])
    whole = np.column_stack([np.interp(np.arange(len(joints)), frames, column) for column in numbers.T])
    whole = gaussian_filter1d(median_filter(whole, (11, 1), mode="nearest"), 8, axis=0, mode="nearest")
    return whole[:, :2], 200 / whole[:, 2]


def join(tables: list[Annotations], what: str) -> Annotations:
    """One table of several; AnnotationError where there are none."""
    tables = [table for table in tables if len(table)]
    if not tables:
        raise AnnotationError(f"No usable frame was found in {what}: is it the folder of the release?")
    columns = [f.name for f in fields(Annotations) if f.name not in ("joint_set", "body")]
    return Annotations(
        **{name: np.concatenate([getattr(table, name) for table in tables]) for name in columns},
        joint_set=tables[0].joint_set,
        body=tables[0].body,
    )
