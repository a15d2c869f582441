"""Meshes drawn over the picture, without a graphics card or a display.

A painter's algorithm on triangle numbers: triangles are filled from far to near into an image of their numbers, at
twice the resolution; then each covered pixel takes its colour from the corners of its triangle. A body's
triangles cover a few pixels each, so that their order by depth settles who is in front.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from . import camera
from .export import vertex_normals
from .result import Recovery

PALETTE = np.array(
    [
        [0.62, 0.74, 0.90],
        [0.95, 0.72, 0.55],
        [0.66, 0.85, 0.65],
        [0.90, 0.68, 0.80],
        [0.93, 0.86, 0.58],
        [0.70, 0.66, 0.90],
        [0.60, 0.85, 0.85],
        [0.85, 0.75, 0.68],
    ]
)
"""Colours of persons, RGB in [0, 1]; the ninth person has the first one's again."""
LONGER_SIDE = 1600
"""Overlays are at most so large: enough to judge by, and quick to draw."""
_SUBPIXEL = 4  # bits behind the point in corners given to OpenCV
_LIGHTS = (((-0.45, -0.65, -0.75), 0.75), ((0.8, -0.1, -0.45), 0.22))
"""Directions to the lights in camera axes, and their strengths: a key light from above left, a fill from the right."""


@dataclass(frozen=True)
class Mesh:
    """Something to draw: vertices (V, 3) in camera coordinates, triangles (F, 3), colour (3,) or (V, 3) in [0, 1]."""

    vertices: np.ndarray
    faces: np.ndarray
    colour: np.ndarray


def overlay(
    recovery: Recovery,
    picture: np.ndarray,
    hypothesis: int = 0,
    opacity: float = 0.9,
    spread: bool = False,
    longer_side: int = LONGER_SIDE,
) -> np.ndarray:
    """Everybody's mesh over the picture (H, W, 3) uint8, which is made smaller if its longer side is above a limit.

    Args:
        hypothesis: which one; a person who has fewer shows the last.
        opacity: in [0, 1].
        spread: colour by how unsure the model is (blue: sure, red: 10 cm and more) instead of by person.
    """
    height, width = picture.shape[:2]
    if (width, height) != tuple(recovery.picture_size):
        raise ValueError(
            f"the picture is {width} × {height}, the result is for one of {recovery.picture_size[0]} × "
            f"{recovery.picture_size[1]}: give the picture that it was made from"
        )
    zoom = min(1.0, longer_side / max(width, height))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    background = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if zoom < 1 else picture
    meshes = [
        Mesh(
            person.vertices[min(hypothesis, person.hypotheses - 1)],
            recovery.faces,
            spread_colours(person.spread) if spread else PALETTE[number % len(PALETTE)],
        )
        for number, person in enumerate(recovery.people)
    ]
    return render(meshes, recovery.focal_length * zoom, background, opacity)


def spread_colours(spread: np.ndarray, most: float = 0.1) -> np.ndarray:
    """Colours (V, 3) in [0, 1] of standard deviations (V,) in metres: blue, green, yellow, red at `most` and above."""
    level = np.clip(np.asarray(spread) / most, 0, 1)
    stops = np.array([[0.25, 0.45, 0.85], [0.35, 0.78, 0.55], [0.95, 0.85, 0.35], [0.88, 0.25, 0.2]])
    return np.stack([np.interp(level, np.linspace(0, 1, len(stops)), stops[:, c]) for c in range(3)], axis=-1)


def render(meshes: Sequence[Mesh], focal_length: float, background: np.ndarray, opacity: float = 1.0) -> np.ndarray:
    """Draw meshes, anti-aliased, over a background (H, W, 3) uint8 RGB in whose middle the principal point lies."""
    height, width = background.shape[:2]
    scale = 2
    numbers = np.full((height * scale, width * scale), -1, np.int32)
    corners, depth, batches = [], [], []
    for mesh in meshes:
        points = camera.project(mesh.vertices, focal_length, (width, height)) * scale
        tri = points[mesh.faces]
        z = mesh.vertices[:, 2][mesh.faces]
        facing = _cross(tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0]) < 0  # y down turns outward windings clockwise
        onscreen = (tri.max(1) > 0).all(1) & (tri.min(1) < [width * scale, height * scale]).all(1)
        chosen = np.flatnonzero(facing & onscreen & (z.min(1) > camera.NEAR))
        corners.append(tri[chosen])
        depth.append(z[chosen].mean(1))
        batches.append(chosen)
    if not batches:
        return background.copy()
    corners, depth = np.concatenate(corners), np.concatenate(depth)
    order = np.argsort(-depth, kind="stable")
    fixed = np.round((corners[order] - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
    for number, points in zip(order.tolist(), fixed, strict=True):
        cv2.fillConvexPoly(numbers, points, number, cv2.LINE_8, _SUBPIXEL)
    rows, columns = np.nonzero(numbers >= 0)
    hit = numbers[rows, columns]
    weights = _barycentric(corners.astype(np.float32)[hit], np.stack([columns, rows], axis=1).astype(np.float32) + 0.5)
    colours = np.concatenate([_shade(mesh)[mesh.faces[batch]] for mesh, batch in zip(meshes, batches, strict=True)])
    layer = np.zeros((*numbers.shape, 4), np.float32)
    layer[rows, columns] = np.concatenate([_blend(weights, colours, hit), np.ones((len(hit), 1), np.float32)], axis=1)
    layer = cv2.resize(layer, (width, height), interpolation=cv2.INTER_AREA)
    alpha = layer[..., 3:] * opacity
    mixed = background * (1 - alpha) + (255 * opacity) * layer[..., :3]
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _barycentric(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Weights (N, 3) of points (N, 2) in triangles (N, 3, 2), clipped to the triangle."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    area = _cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-9, -1e-9, area)
    v = _cross(points - a, c - a) / area
    w = _cross(b - a, points - a) / area
    weights = np.clip(np.stack([1 - v - w, v, w], axis=1), 0, 1)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)


def _blend(weights: np.ndarray, colours: np.ndarray, triangle: np.ndarray) -> np.ndarray:
    """Colours (N, 3) at weights (N, 3) of triangles (N,) whose corners have colours (M, 3, 3)."""
    return sum(weights[:, corner, None] * colours[:, corner][triangle] for corner in range(3))


def _shade(mesh: Mesh) -> np.ndarray:
    """Colours (V, 3) float32 in [0, 1] of the vertices: two lights, sky above, a little gloss, a soft dark rim."""
    normal = vertex_normals(mesh.vertices, mesh.faces)
    to_eye = -mesh.vertices / np.maximum(np.linalg.norm(mesh.vertices, axis=1, keepdims=True), 1e-9)
    light = 0.30 - 0.12 * normal[:, 1]
    for direction, strength in _LIGHTS:
        light += strength * np.clip(normal @ (np.array(direction) / np.linalg.norm(direction)), 0, None)
    half = np.array(_LIGHTS[0][0]) / np.linalg.norm(_LIGHTS[0][0]) + to_eye
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    gloss = 0.12 * np.clip((normal * half).sum(1), 0, 1) ** 24
    rim = 0.75 + 0.25 * np.clip((normal * to_eye).sum(1) * 2.5, 0, 1)
    return np.clip(np.asarray(mesh.colour) * (light * rim)[:, None] + gloss[:, None], 0, 1).astype(np.float32)


def views(
    vertices: np.ndarray,
    faces: np.ndarray,
    angles: Sequence[float] = (0, 90, 180),
    side: int = 480,
    colour: np.ndarray | None = None,
) -> np.ndarray:
    """A body from several sides in a row, (side, side · views, 3) uint8 on light grey.

    Args:
        vertices: (V, 3) in camera coordinates (y down).
        angles: degrees about the vertical axis.
        colour: (3,) or (V, 3) in [0, 1].
    """
    colour = PALETTE[0] if colour is None else colour
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    size = max(np.linalg.norm(vertices - middle, axis=1).max() * 2.1, 1e-3)
    tiles = []
    for angle in np.deg2rad(angles):
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        turned = (vertices - middle) @ turn.T + [0, 0, 5 * size]
        blank = np.full((side, side, 3), 236, np.uint8)
        tiles.append(render([Mesh(turned.astype(np.float32), faces, colour)], 5 * side, blank))
    return np.concatenate(tiles, axis=1)
