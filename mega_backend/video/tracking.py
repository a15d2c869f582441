"""Who is who from frame to frame: sightings assigned to tracks by where they move, how they are built and coloured.

An identity outlives absences: somebody who comes back is recognised by build and clothes. Nothing here looks at
pictures or loads a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from mega_backend.people.landmarks import MAIN

BONES = ((11, 12), (23, 24), (11, 23), (12, 24), (23, 25), (24, 26), (25, 27), (26, 28), (11, 13), (12, 14))
"""Landmark pairs whose lengths in space say how somebody is built."""

WELL_SEEN = 5
"""Sightings after which somebody is known well enough to be recognised."""
DARK = 0.15
"""Colours nearer to black than this are those of no one in particular."""


@dataclass(frozen=True)
class Sighting:
    """Somebody in a frame.

    box (4,), landmarks (33, 3) pixels and visibility, landmarks_3d (33, 3) metres, as of `people.Detection`.
    colours (C,): what the clothes look like, in threes: lightness and two hues as of Lab, [0, 1] each, 0.5 without hue;
    None where it is not known.
    """

    box: np.ndarray
    landmarks: np.ndarray
    landmarks_3d: np.ndarray
    colours: np.ndarray | None = None


@dataclass(frozen=True)
class TrackingOptions:
    """Scales of what tells people apart. Lengths in heights of the person.

    near: a distance from the predicted place that is usual. colours, build, size: usual differences of one person's
    descriptions. gate: cost beyond which nobody is the same. memory: seconds after which absent people are forgotten.
    brief: seconds during which the place still counts.
    """

    near: float = 0.06
    colours: float = 0.16
    build: float = 0.12
    size: float = 0.15
    gate: float = 3.0
    brief: float = 1.5
    memory: float = 60.0


@dataclass
class _Track:
    number: int
    points: np.ndarray
    velocity: np.ndarray
    height: float
    time: float
    colours: np.ndarray | None
    build: np.ndarray
    seen: int = 1
    visible: np.ndarray = field(default_factory=lambda: np.ones(len(MAIN)))


class Tracker:
    """Gives every sighting the number of its person; numbers count from 1 and are never used again.

    Call `update` once for each frame, in order.
    """

    def __init__(self, options: TrackingOptions | None = None) -> None:
        self.options = options or TrackingOptions()
        self._tracks: list[_Track] = []
        self._count = 0
        self._cut_at = -np.inf

    def update(self, time: float, sightings: Sequence[Sighting], cut: bool = False) -> list[int]:
        """The number of each sighting's person.

        Args:
            time: of the frame, seconds, growing.
            sightings: each of another person.
            cut: the picture has changed entirely: where people were says nothing any more.
        """
        if cut:
            self._cut_at = time
        self._tracks = [track for track in self._tracks if time - track.time <= self.options.memory]
        cost = np.array([[self._cost(track, sighting, time) for track in self._tracks] for sighting in sightings])
        numbers = [0] * len(sightings)
        if cost.size:
            possible = np.where(cost < self.options.gate, cost, 1e3)
            for row, column in zip(*linear_sum_assignment(possible), strict=True):
                if possible[row, column] < self.options.gate:
                    self._follow(self._tracks[column], sightings[row], time)
                    numbers[row] = self._tracks[column].number
        for row, sighting in enumerate(sightings):
            if not numbers[row]:
                self._count += 1
                self._tracks.append(_started(self._count, sighting, time))
                numbers[row] = self._count
        return numbers

    def _cost(self, track: _Track, sighting: Sighting, time: float) -> float:
        """How unlike a track and a sighting are: about 1 where they are one person, above the gate where not."""
        options = self.options
        gone = time - track.time
        terms = [np.abs(_build(sighting) - track.build).mean() / options.build]
        if track.colours is not None and sighting.colours is not None:
            terms.append(np.linalg.norm(sighting.colours - track.colours) / options.colours)
        near_by = gone <= options.brief and track.time >= self._cut_at
        if not near_by:
            # Somebody who comes back: recognised by looks alone, and only by a good likeness. Nobody is by build alone,
            # nor by black clothes, which too many wear: rather one person twice than two people in one.
            known = track.seen >= WELL_SEEN and len(terms) > 1 and not _dark(track.colours)
            return 1.5 * float(np.max(terms)) if known else np.inf
        height = _height(sighting)
        terms.append(abs(np.log(height / track.height)) / (options.size * (1 + gone)))
        predicted = track.points + track.velocity * min(gone, 0.5)
        weight = sighting.landmarks[list(MAIN), 2] * track.visible + 0.05
        distance = np.linalg.norm(sighting.landmarks[list(MAIN), :2] - predicted, axis=1)
        # The longer ago, the farther somebody may be: half a height a second beyond what was foreseen.
        usual = (options.near + 0.5 * gone) * max(height, track.height)
        away = float((weight * distance).sum() / weight.sum() / usual)
        return 0.6 * away + 0.4 * float(np.mean(terms))

    def _follow(self, track: _Track, sighting: Sighting, time: float) -> None:
        points = sighting.landmarks[list(MAIN), :2].astype(np.float64)
        elapsed = max(time - track.time, 1e-3)
        share = 1.0 if elapsed > self.options.brief else 0.5
        # Limbs swing back; the whole body's motion is what carries on.
        moved = np.median(points - track.points, axis=0) / elapsed
        track.velocity = (1 - share) * track.velocity + (share if elapsed <= self.options.brief else 0.0) * moved
        track.points, track.time = points, time
        track.visible = sighting.landmarks[list(MAIN), 2].astype(np.float64)
        track.seen += 1
        pace = max(0.05, 1 / track.seen)
        track.height += 0.3 * (_height(sighting) - track.height)
        track.build = track.build + pace * (_build(sighting) - track.build)
        if sighting.colours is not None:
            before = sighting.colours if track.colours is None else track.colours
            track.colours = before + pace * (sighting.colours - before)


def _started(number: int, sighting: Sighting, time: float) -> _Track:
    points = sighting.landmarks[list(MAIN), :2].astype(np.float64)
    colours = None if sighting.colours is None else np.asarray(sighting.colours, np.float64)
    return _Track(number, points, np.zeros(2), _height(sighting), time, colours, _build(sighting))


def _height(sighting: Sighting) -> float:
    """How large somebody is in the picture, pixels: from bones in the picture and in space, whatever the posture."""
    flat, deep = sighting.landmarks[:, :2].astype(np.float64), sighting.landmarks_3d[:, :2]
    pairs = np.array(BONES)
    in_picture = np.linalg.norm(flat[pairs[:, 0]] - flat[pairs[:, 1]], axis=1)
    in_space = np.linalg.norm(deep[pairs[:, 0]] - deep[pairs[:, 1]], axis=1)
    # Pixels per metre, times a usual height: a bone that points at the camera counts little in both sums.
    return float(max(1.7 * in_picture.sum() / max(in_space.sum(), 1e-3), 4.0))


def _dark(colours: np.ndarray) -> bool:
    """Whether all clothes are about black."""
    return bool((np.linalg.norm(colours.reshape(-1, 3) - [0, 0.5, 0.5], axis=1) < DARK).all())


def _build(sighting: Sighting) -> np.ndarray:
    """Logarithms of bone lengths in space (6,), the two sides of a limb averaged."""
    points = np.asarray(sighting.landmarks_3d, np.float64)
    length = np.array([np.linalg.norm(points[a] - points[b]) for a, b in BONES]).clip(1e-3)
    paired = [length[0], length[1], *(length[i : i + 2].mean() for i in range(2, len(BONES), 2))]
    return np.log(paired)
