"""One look at a person: the circle round the body, the landmark network's answer, and several answers as one."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from mega_backend import turns

from .crops import visible_box
from .landmarks import MAIN, MIRRORED
from .pose_network import DETECTOR_SIDE, LANDMARK_SIDE, PoseNetwork

WINDOW_SIDES = (1.0, 0.75, 0.6, 0.45, 0.35)
"""Sides of the detector's windows, relative to the picture's longer side."""
SMALLEST_WINDOW = 150
"""No window is smaller, in pixels, but for the one round the whole picture: enlarging shows nothing new."""
CROP_MARGIN = 1.25
"""Side of a landmark crop over the diameter of the circle round the body: what the networks were trained with."""
FEWEST_SEEN = 4
"""A person shows at least so many of the main joints."""
AGREEMENT = 0.07
"""Looks at one person differ by less than this on average, relative to the circle round the body (see `Eye.confirm`).
On photographs people differ by 0.01 to 0.07, blurred noise, furniture and textures by 0.08 to 0.25."""
DOUBT = 0.04
"""A landmark on which the looks differ by so much, relative to the person's size, is half as visible as reported."""
HEAD_AND_SHOULDERS = list(range(13))


@dataclass(frozen=True)
class Detection:
    """A person in a picture.

    Attributes:
        box: (4,) float32 x0, y0, x1, y1 in pixels: encloses the visible landmarks, cut to the picture.
        landmarks: (33, 3) float32 x, y in pixels of the picture (may lie outside it), visibility in [0, 1].
        landmarks_3d: (33, 3) float32 the detector's own estimate, metres, hip-centred, x right, y down, z forward.
        score: how sure the detector is, in [0, 1].
    """

    box: np.ndarray
    landmarks: np.ndarray
    landmarks_3d: np.ndarray
    score: float


@dataclass(frozen=True)
class Circle:
    """The circle round a body: hip centre and the point on it above the head, pixels."""

    centre: np.ndarray
    top: np.ndarray
    score: float

    @property
    def radius(self) -> float:
        return float(np.hypot(*(self.top - self.centre)))

    @property
    def crop_to_picture(self) -> np.ndarray:
        """(2, 3) affine from relative crop coordinates to pixels: centred on the hips, body upright."""
        up = (self.centre - self.top) / max(self.radius, 1e-6)
        right = np.array([up[1], -up[0]])
        side = 2 * CROP_MARGIN * self.radius
        axes = np.stack([right, up], axis=1) * side
        return np.concatenate([axes, (self.centre - axes @ [0.5, 0.5])[:, None]], axis=1)


@dataclass(frozen=True)
class Pose:
    """What the landmark network saw in one crop, in pixels of the picture."""

    points: np.ndarray
    visibility: np.ndarray
    world: np.ndarray
    circle: Circle
    disagreement: float = 0.0


@dataclass(frozen=True)
class Eye:
    """The networks, looking at one picture. With `blinkers` they see a strip of that half width (over the radius)."""

    pyramid: list[np.ndarray]
    network: PoseNetwork
    blinkers: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pyramid[0].shape

    def map(self, function: Callable[["Eye", Any], Any], things: Iterable[Any]) -> list[Any]:
        """`function(self, thing)` of each thing, in order, as many at a time as there are networks."""
        with ThreadPoolExecutor(self.network.lanes) as pool:
            started = [pool.submit(turns.in_context(function), self, thing) for thing in things]
            return [one.result() for one in started]

    def detect(self) -> list[Circle]:
        """What the detector sees through all windows, the surest first."""
        seen = self.map(Eye.detect_in, _windows(*self.shape[:2]))
        return _distinct_circles([circle for circles in seen for circle in circles])

    def detect_in(self, window: tuple[float, float, float]) -> list[Circle]:
        x, y, side = window
        crop = _crop(self.pyramid, np.array([[side, 0, x], [0, side, y]]), DETECTOR_SIDE)
        rows = self.network.detect(crop)
        return [Circle(row[:2] * side + [x, y], row[2:4] * side + [x, y], float(row[4])) for row in rows]

    def look(self, circle: Circle) -> Pose | None:
        """Run the landmark network on the crop that a circle describes."""
        if circle.radius < 4:
            return None
        matrix = circle.crop_to_picture
        crop = _crop(self.pyramid, matrix, LANDMARK_SIDE)
        seen = self.network.landmarks(crop if self.blinkers is None else _blinkered(crop, self.blinkers))
        if seen is None:
            return None
        landmarks, new_circle, world = seen
        centre, top = new_circle @ matrix[:, :2].T + matrix[:, 2]
        axes = matrix[:, :2] / np.hypot(*matrix[:, 0])
        return Pose(
            points=landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2],
            visibility=landmarks[:, 2],
            world=np.concatenate([world[:, :2] @ axes.T, world[:, 2:]], axis=1),
            circle=Circle(centre, top, circle.score),
        )

    def look_mirrored(self, circle: Circle) -> Pose | None:
        """As `look`, through a mirror; the answer is turned back."""
        width = self.shape[1]

        def turned(points: np.ndarray) -> np.ndarray:
            return np.array([width, 0]) + points * [-1, 1]

        mirrored = replace(self, pyramid=[level[:, ::-1] for level in self.pyramid])
        seen = mirrored.look(Circle(turned(circle.centre), turned(circle.top), circle.score))
        if seen is None:
            return None
        order = list(MIRRORED)
        return replace(
            seen,
            points=turned(seen.points)[order],
            visibility=seen.visibility[order],
            world=(seen.world * [-1, 1, 1])[order],
            circle=circle,
        )

    def follow(self, pose: Pose) -> Pose | None:
        """Let the landmarks of each look place the next crop, then confirm the outcome."""
        for _ in range(2):
            pose = self.look(pose.circle)
            if pose is None:
                return None
        return self.confirm(pose)

    def confirm(self, pose: Pose) -> Pose | None:
        """Look through a smaller, a larger and mirrored crops too: on a person the looks agree, on a chair not.

        Returns:
            The median of all looks for points, their mean for the rest, which is more precise than any of them: on
            rendered people the 3D estimate is a tenth nearer, landmarks in the picture likewise. A landmark on which
            the looks disagree is reported as less visible, for there the errors are: that says more than the network's
            own visibility. None where it is no person.
        """
        seen = [i for i in MAIN if pose.visibility[i] > 0.5 and inside(pose.points[i], self.shape)]
        if len(seen) < FEWEST_SEEN:
            return None
        smaller, larger = (_resized(pose.circle, scale) for scale in (0.9, 1.1))
        looks, distances = [], []
        for look, circle in ((self.look_mirrored, pose.circle), (self.look, smaller), (self.look, larger)):
            looks.append(look(circle))
            distances.append(distance(looks[-1], pose, seen))
            if sum(distances) > 3 * AGREEMENT:
                return None
        looks += [self.look_mirrored(circle) for circle in (smaller, larger)]
        return combined([pose, *(look for look in looks if look is not None)], sum(distances) / 3)


def circle_round(landmarks: np.ndarray, score: float = 0.0) -> Circle:
    """The circle round a body from its landmarks (33, ≥2) in pixels alone."""
    points = landmarks[:, :2].astype(np.float64)
    centre, neck = points[[23, 24]].mean(0), points[[11, 12]].mean(0)
    up = (neck - centre) / max(np.linalg.norm(neck - centre), 1e-6)
    radius = 1.05 * max(np.linalg.norm(points - centre, axis=1).max(), 4.0)
    return Circle(centre, centre + radius * up, score)


def combined(looks: list[Pose], disagreement: float) -> Pose:
    """What several looks at one person say together, in the circle of the first."""
    every = np.stack([look.points for look in looks])
    points = np.median(every, axis=0)
    apart = np.linalg.norm(every - points, axis=-1).mean(axis=0) / max(np.ptp(points, axis=0).max(), 1e-6)
    visibility = np.mean([look.visibility for look in looks], axis=0) / (1 + (apart / DOUBT) ** 2)
    world = np.mean([look.world for look in looks], axis=0)
    return replace(looks[0], points=points, visibility=visibility, world=world, disagreement=disagreement)


def distinct_poses(poses: list[Pose]) -> list[Pose]:
    """One pose for each person: of those that coincide, the one whose looks agree best."""
    kept: list[Pose] = []
    for pose in sorted(poses, key=lambda pose: pose.disagreement - 0.1 * pose.circle.score):
        if not any(is_same_person(pose, other) for other in kept):
            kept.append(pose)
    return kept


def is_same_person(one: Pose, other: Pose) -> bool:
    """Whether the main joints, or head and shoulders, that both show mostly coincide."""
    distance = np.hypot(*(one.points - other.points).T) / min(one.circle.radius, other.circle.radius)
    near = np.minimum(one.visibility, other.visibility) * (distance < 0.15)
    return any(near[part].sum() >= 0.5 * one.visibility[part].sum() for part in (list(MAIN), HEAD_AND_SHOULDERS))


def distance(look: Pose | None, pose: Pose, landmarks: list[int]) -> float:
    """Median distance of landmarks between two looks, relative to the body's circle; at most 0.25, as for no look."""
    if look is None:
        return 0.25
    return min(0.25, float(np.median(np.hypot(*(look.points - pose.points)[landmarks].T)) / pose.circle.radius))


def inside(point: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a point (2,) lies in a picture of this shape."""
    return 0 <= point[0] < shape[1] and 0 <= point[1] < shape[0]


def as_detection(pose: Pose, shape: tuple[int, ...]) -> Detection:
    """A pose in a picture of this shape, as everybody else reads it."""
    landmarks = np.concatenate([pose.points, pose.visibility[:, None]], axis=1).astype(np.float32)
    return Detection(
        box=visible_box(landmarks, (shape[1], shape[0])).astype(np.float32),
        landmarks=landmarks,
        landmarks_3d=pose.world.astype(np.float32),
        score=pose.circle.score,
    )


def pyramid(picture: np.ndarray) -> list[np.ndarray]:
    """The picture and its halvings: crops are taken from the level that is near their size, so that nothing aliases."""
    levels = [picture]
    while max(levels[-1].shape[:2]) > 2 * DETECTOR_SIDE:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (max(width // 2, 1), max(height // 2, 1)), interpolation=cv2.INTER_AREA))
    return levels


def _crop(pyramid: list[np.ndarray], crop_to_picture: np.ndarray, side: int) -> np.ndarray:
    """A (side, side, 3) crop, black outside the picture. crop_to_picture: (2, 3), from [0, 1]² to pixels."""
    zoom = np.hypot(*crop_to_picture[:, 0]) / side
    level = int(np.clip(np.floor(np.log2(max(zoom, 1e-6))), 0, len(pyramid) - 1))
    source = pyramid[level]
    scale = np.array([source.shape[1] / pyramid[0].shape[1], source.shape[0] / pyramid[0].shape[0]])
    matrix = crop_to_picture * scale[:, None]
    # Pixel centres lie at half numbers on both sides.
    matrix = np.concatenate(
        [matrix[:, :2] / side, matrix[:, 2:] + matrix[:, :2] @ [[0.5 / side], [0.5 / side]] - 0.5], 1
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(source, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_CONSTANT)


def _windows(height: int, width: int) -> Iterator[tuple[float, float, float]]:
    """Squares x, y, side that cover the picture at several sizes, neighbours overlapping by half or more."""
    longer = max(height, width)
    for relative in WINDOW_SIDES:
        side = relative * longer
        if relative < 1 and side < SMALLEST_WINDOW:
            break
        columns, rows = (max(1, int(np.ceil(2 * length / side)) - 1) for length in (width, height))
        for y in np.linspace(0, height - side, rows) if rows > 1 else [(height - side) / 2]:
            for x in np.linspace(0, width - side, columns) if columns > 1 else [(width - side) / 2]:
                yield float(x), float(y), side


def _distinct_circles(circles: list[Circle]) -> list[Circle]:
    """The best of those that lie on each other, best first."""
    kept: list[Circle] = []
    for circle in sorted(circles, key=lambda circle: -circle.score):
        if not any(
            np.hypot(*(circle.centre - other.centre)) < 0.2 * min(circle.radius, other.radius)
            and np.hypot(*(circle.top - other.top)) < 0.4 * min(circle.radius, other.radius)
            for other in kept
        ):
            kept.append(circle)
    return kept


def _resized(circle: Circle, scale: float) -> Circle:
    return replace(circle, top=circle.centre + scale * (circle.top - circle.centre))


def _blinkered(crop: np.ndarray, half_width: float) -> np.ndarray:
    """A crop with grey on both sides of the body, `half_width` radii from its middle, to hide neighbours."""
    side = crop.shape[1]
    beyond = np.abs(np.arange(side) + 0.5 - side / 2) - half_width * side / (2 * CROP_MARGIN)
    cover = np.clip(beyond / 6, 0, 1)[None, :, None]
    return (crop * (1 - cover) + 128 * cover).astype(np.uint8)
