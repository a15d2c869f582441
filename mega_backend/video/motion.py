"""From sightings to motion: hypotheses of every frame, one path through them, one body shape, smooth, feet that stand.

Frames are pushed in chunks and come back once everything that bears on them is known, about three and a half seconds
later. What is kept meanwhile are poses, not pictures or meshes, so memory does not grow with the clip.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from mega_backend import camera
from mega_backend.people import square_crop
from mega_backend.people.landmarks import COCO17_LANDMARKS
from mega_backend.recovery import Recoverer
from mega_backend.recovery.placing import LANDMARK_ERROR
from mega_backend.refinement import Refiner, Trust, landmark_trust
from mega_backend.rig import Pose

from . import placing
from .hypotheses import Hypothesiser, Row, posed_joints, tensor
from .path import PathFinder, PathOptions
from .smoothing import CUTOFFS
from .tracking import Sighting, TrackingOptions
from .trajectory import believed, bone_landmarks, smoothed, through

WRITTEN_AT_ONCE = 1.0
"""Seconds of frames that are smoothed together, at least."""
SETTLING_STEPS, SETTLING_TRUST, SETTLING_CUTOFF = 1, 0.06, 1.5
"""How the smooth motion goes back onto the landmarks: steps, metres that its surface may give way, and what the cut-off
is multiplied by afterwards."""
DOUBT = 1.25
"""How fast a bone's weight falls with the visibility of its landmarks."""
SHAPES = 600
"""The latest so many frames say how a body is built."""
FORGOTTEN = TrackingOptions().memory + 10.0
"""Seconds after which nothing more is known of somebody who is away."""
Frames = Sequence[tuple[int, float, Sequence[tuple[int, Sighting]]]]
"""Number and time of each frame, and in it [(track, sighting)]."""


@dataclass(frozen=True)
class MotionOptions:
    """How motion is made. Times in seconds.

    hypotheses N per frame; seed, steps, temperature of the sampling; smoothing: off, light or strong. gap: the longest
    that is filled. shortest: who is seen for less, before or after an absence, is nobody. context: how far smoothing
    looks either way.
    """

    hypotheses: int = 5
    seed: int = 0
    steps: int = 2
    temperature: float = 1.0
    smoothing: str = "light"
    hold_feet: bool = True
    gap: float = 1.0
    shortest: float = 0.3
    context: float = 1.5

    def __post_init__(self) -> None:
        if self.smoothing not in CUTOFFS:
            raise ValueError(f"smoothing is {', '.join(CUTOFFS)}, not '{self.smoothing}'")
        if self.hypotheses < 1 or self.steps < 1:
            raise ValueError("ask for at least 1 hypothesis and 1 step")


@dataclass(frozen=True)
class TrackedPerson:
    """Somebody in a frame. Camera axes (x right, y down, z forward), metres.

    track: the person's number. rotations (J, 3, 3) of the rig, in the world from the T-pose; shape (S,), translation
    (3,): as of `rig.Pose`. joints (22, 3). box (4,), landmarks (33, 3): what was seen; NaN in a gap. hypothesis: which
    one was chosen, −1 in a gap. alternatives (N, 22, 3): joints of all hypotheses as each frame alone has them.
    """

    track: int
    rotations: np.ndarray
    shape: np.ndarray
    translation: np.ndarray
    joints: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray
    hypothesis: int
    alternatives: np.ndarray


@dataclass(frozen=True)
class FrameResult:
    """The people of a frame: its number in the clip, its time in seconds."""

    index: int
    time: float
    people: list[TrackedPerson]


@dataclass
class _Person:
    """What is known of a track: rows whose choice is open, rows chosen, the body's shape, when it was seen last.

    goes_on: the first of the chosen rows goes on from one that has been let go.
    """

    open: list[Row] = field(default_factory=list)
    chosen: list[Row] = field(default_factory=list)
    finder: PathFinder | None = None
    shapes: list[np.ndarray] = field(default_factory=list)
    trusts: list[float] = field(default_factory=list)
    goes_on: bool = False
    last: float = -np.inf

    def shape(self) -> np.ndarray:
        """The body's shape (S,): frames that differ from most count little, and those that show little of the body."""
        shapes = np.stack(self.shapes)
        middle = np.median(shapes, axis=0)
        away = np.square(shapes - middle).mean(1)
        weights = np.square(self.trusts) / (1 + away / max(np.median(away), 1e-6))
        return (weights[:, None] * shapes).sum(0) / weights.sum()


class MotionSolver:
    """Turns tracked sightings into smooth motion.

    Args:
        recoverer: with a rig (the bundled body) and a model that reads landmarks.
        size: width, height of the pictures. focal_length: in pixels, one for the clip.
    """

    def __init__(
        self,
        recoverer: Recoverer,
        size: tuple[int, int],
        focal_length: float | None = None,
        options: MotionOptions | None = None,
    ) -> None:
        if recoverer.refiner is None or not recoverer.reads_landmarks:
            raise ValueError("videos need a model of the bundled body that reads landmarks: use --model default")
        self.size, self.options = size, options or MotionOptions()
        self.focal_length = focal_length or camera.default_focal_length(size)
        self.body = recoverer.refiner.rig.body
        own = self.options
        self.hypothesiser = Hypothesiser(
            recoverer, size, self.focal_length, own.hypotheses, own.seed, own.steps, own.temperature
        )
        self._settled: Refiner = copy.copy(recoverer.refiner)
        self._settled.trust = Trust(shape=0.01, surface=SETTLING_TRUST)
        self._bone_landmarks = bone_landmarks(self.body.joint_names)
        self._legs = [_Leg(self.body.joint_names, side) for side in "LR"]
        self._people: dict[int, _Person] = {}
        self._waiting: list[tuple[int, float]] = []
        self._interval = 0.0

    def push(self, frames: Frames) -> list[FrameResult]:
        """Add frames; returns those that are done, in order."""
        return self.add(frames, self.hypotheses(frames))

    def hypotheses(self, frames: Frames) -> list[Row]:
        """The costly half of `push`: all hypotheses of frames, in the order of their sightings."""
        return self.hypothesiser.rows(sightings_of(frames))

    def add(self, frames: Frames, rows: Sequence[Row]) -> list[FrameResult]:
        """The other half of `push`: frames and their hypotheses in, frames that are done out."""
        for (track, *_), row in zip(sightings_of(frames), rows, strict=True):
            self._choose(self._people.setdefault(track, _Person()), row)
        self._waiting += [(index, time) for index, time, _ in frames]
        if not frames:
            return []
        steps = np.diff([time for _, time in self._waiting[-len(frames) - 1 :]])
        self._interval = float(np.median(steps)) if len(steps) else self._interval
        now = frames[-1][1]
        for person in self._people.values():
            if person.open and now - person.open[-1].time > self.options.gap:
                self._close(person)
        horizon = now - self.options.gap - self.options.context
        return self._emit(horizon) if self._waiting[0][1] <= horizon - WRITTEN_AT_ONCE else []

    def finish(self) -> list[FrameResult]:
        """The frames that were still waiting."""
        for person in self._people.values():
            self._close(person)
        return self._emit(np.inf)

    # The path -----------------------------------------------------------------------------------------------------

    def _choose(self, person: _Person, row: Row) -> None:
        if person.open and row.time - person.open[-1].time > self.options.gap:
            self._close(person)
        if person.finder is None:
            person.finder = PathFinder(PathOptions())
        person.open.append(row)
        person.last = row.time
        # Motion is judged without distance from the camera, which a single picture hardly shows.
        joints = row.joints - row.joints[:, :1]
        self._decide(person, person.finder.push(row.unlikeliness, joints, row.time))

    def _close(self, person: _Person) -> None:
        """Decide what is open: the person has gone."""
        if person.finder is not None:
            self._decide(person, person.finder.finish())
            person.finder = None

    def _decide(self, person: _Person, choices: list[int]) -> None:
        rows, person.open = person.open[: len(choices)], person.open[len(choices) :]
        for row, choice in zip(rows, choices, strict=True):
            row.hypothesis = choice
            person.chosen.append(row)
            # A sample's own idea of the body is the same in all frames: only the expected one says how they are built.
            person.shapes.append(row.shape[0])
            person.trusts.append(0.05 + float(landmark_trust(row.sighting.landmarks, self.size)[11:].mean()))
        person.shapes, person.trusts = person.shapes[-SHAPES:], person.trusts[-SHAPES:]

    # Emission -----------------------------------------------------------------------------------------------------

    def _emit(self, horizon: float) -> list[FrameResult]:
        """Results of the waiting frames up to a time that nothing later bears on."""
        ready = [(index, time) for index, time in self._waiting if time <= horizon]
        if not ready:
            return []
        self._waiting = self._waiting[len(ready) :]
        found: dict[int, list[TrackedPerson]] = {index: [] for index, _ in ready}
        for track, person in sorted(self._people.items()):
            for stretch in _runs(self._lasting(person), self.options.gap):
                for index, result in self._moving(track, person, stretch, ready):
                    found[index].append(result)
        last = ready[-1][1]
        for person in self._people.values():
            old = [row for row in person.chosen if row.time <= last - self.options.context]
            person.chosen = person.chosen[len(old) :]
            if old:
                person.goes_on = bool(person.chosen) and person.chosen[0].time - old[-1].time <= self._pause()
        # Whom the tracker has forgotten does not come back.
        self._people = {track: person for track, person in self._people.items() if last - person.last < FORGOTTEN}
        return [FrameResult(index, time, found[index]) for index, time in ready]

    def _lasting(self, person: _Person) -> list[Row]:
        """The chosen rows without sightings so short, before or after an absence, that nobody can be sure of them."""
        result = []
        for number, run in enumerate(_runs(person.chosen, self._pause())):
            if run[-1].time - run[0].time >= self.options.shortest or (number == 0 and person.goes_on):
                result += run
        return result

    def _pause(self) -> float:
        """Seconds without a sighting that are an absence, however few frames a second there are."""
        return max(self.options.shortest, 2.5 * self._interval)

    @torch.no_grad()
    def _moving(
        self, track: int, person: _Person, rows: list[Row], ready: list[tuple[int, float]]
    ) -> list[tuple[int, TrackedPerson]]:
        """The smooth motion of a stretch, for those of its frames that are ready; gaps between its rows are filled."""
        known = {row.index: row for row in rows}
        between = [(i, t) for i, t in ready if i not in known and rows[0].time < t < rows[-1].time]
        moments = sorted([(row.index, row.time) for row in rows] + between)
        wanted = [n for n, (index, _) in enumerate(moments) if ready[0][0] <= index <= ready[-1][0]]
        if not wanted:
            return []
        pose = self._smooth(person, np.array([t for _, t in moments]), [known.get(index) for index, _ in moments])
        joints = posed_joints(self.body, pose)
        unseen = np.full((self.options.hypotheses, 22, 3), np.nan, np.float32)
        results = []
        for n in wanted:
            row = known.get(moments[n][0])
            result = TrackedPerson(
                track,
                pose.rotations[n].numpy(),
                pose.shape[n].numpy(),
                pose.translation[n].numpy(),
                joints[n],
                np.full(4, np.nan, np.float32) if row is None else row.sighting.box,
                np.full((33, 3), np.nan, np.float32) if row is None else row.sighting.landmarks,
                -1 if row is None else row.hypothesis,
                unseen if row is None else row.joints,
            )
            results.append((moments[n][0], result))
        return results

    # Smoothing ----------------------------------------------------------------------------------------------------

    def _smooth(self, person: _Person, times: np.ndarray, rows: list[Row | None]) -> Pose:
        """One pose for each moment, whether there is a row or a gap."""
        cutoff = CUTOFFS[self.options.smoothing]
        first = next(row for row in rows if row is not None)
        shown = [first if row is None else row for row in rows]
        seen = np.array([row is not None for row in rows])
        landmarks = np.stack([row.sighting.landmarks for row in shown])
        trust = np.stack([landmark_trust(marks, self.size) for marks in landmarks])
        # Half seen is hardly known: what is hidden follows from the frames before and after.
        weights = np.stack([trust[:, list(marks)].mean(1) for marks in self._bone_landmarks], axis=1)
        weights = weights.clip(0.05, 1) ** DOUBT * seen[:, None]
        candidates = np.stack([row.rotations for row in shown]).astype(np.float64)
        belief = believed(candidates[:, 0], times, weights, cutoff)
        weights = weights * belief
        rotations = through(candidates, np.array([max(row.hypothesis, 0) for row in shown]), times, weights, cutoff)
        shape = tensor(person.shape()).expand(len(times), -1)
        pose = Pose(tensor(rotations), shape, torch.zeros(len(times), 3))
        start = np.stack([row.translation[row.hypothesis] for row in shown])
        places = self._on_landmarks(pose, start, landmarks, trust, shown)
        if cutoff is not None:
            # Every hypothesis lay on its landmarks, with a body shape of its own: with the shape of all frames, once
            # more. What that stirs up is smoothed as before.
            evidence = self.hypothesiser.evidence([row.sighting for row in shown])
            evidence = replace(evidence, weights=evidence.weights * tensor(seen * belief[:, 0])[:, None])
            pose = self._settled.refine(replace(pose, translation=tensor(places)), evidence, steps=SETTLING_STEPS)
            rotations = smoothed(pose.rotations.double().numpy(), times, weights, SETTLING_CUTOFF * cutoff)
            pose = Pose(tensor(rotations), shape, torch.zeros(len(times), 3))
            places = self._on_landmarks(pose, start, landmarks, trust, shown)
        if cutoff is None:
            known = np.flatnonzero(seen)
            filled = [np.interp(times, times[known], column[known]) for column in places.T]
            return Pose(pose.rotations, shape, tensor(np.stack(filled, axis=1)))
        middle = self.body.heads(shape)[:, 0].double().numpy()
        feet = self._feet(pose) - middle[:, None]
        standing = placing.contacts(times, landmarks, seen) * float(self.options.hold_feet)
        body_weight = weights[:, 0]
        roots = placing.placed(places + middle, times, body_weight, feet, standing, cutoff)
        pose = Pose(pose.rotations, shape, tensor(roots - middle))
        return self._feet_held(pose, times, standing) if self.options.hold_feet else pose

    def _on_landmarks(
        self, pose: Pose, start: np.ndarray, landmarks: np.ndarray, trust: np.ndarray, shown: Sequence[Row]
    ) -> np.ndarray:
        """Translations (F, 3) that bring the poses' joints onto the landmarks of each frame."""
        picked = list(COCO17_LANDMARKS)
        sides = np.array([square_crop(row.sighting.landmarks, self.size).side for row in shown])
        joints = self.body.skin_joints(pose.rotations, pose.shape, "coco17").double().numpy()
        return camera.fit_translation(
            joints,
            landmarks[:, picked, :2],
            trust[:, picked],
            start,
            self.focal_length,
            self.size,
            LANDMARK_ERROR * sides[:, None],
        )

    def _feet(self, pose: Pose) -> np.ndarray:
        """Heels and toes (F, 4, 3) in space."""
        return posed_joints(self.body, pose, "mediapipe33")[:, placing.POINTS].astype(np.float64)

    def _feet_held(self, pose: Pose, times: np.ndarray, standing: np.ndarray) -> Pose:
        """Legs bent a little so that what stands keeps its place; feet keep their turn."""
        moves = placing.held(times, self._feet(pose), standing)
        heads = self.body.posed_heads(pose.rotations, pose.shape).double().numpy()
        rotations = pose.rotations.double().numpy().copy()
        for leg, move in zip(self._legs, np.moveaxis(moves, 1, 0), strict=True):
            ankle = heads[:, leg.ankle]
            upper, lower = placing.bend_leg(heads[:, leg.hip], heads[:, leg.knee], ankle, ankle + move)
            rotations[:, leg.thigh] = upper[:, None] @ rotations[:, leg.thigh]
            rotations[:, leg.shin] = lower[:, None] @ rotations[:, leg.shin]
        return Pose(tensor(rotations), pose.shape, pose.translation)


class _Leg:
    """Numbers of a leg's bones: whose heads are hip, knee and ankle, and which turn as thigh and shin."""

    def __init__(self, names: Sequence[str], side: str) -> None:
        at = {name: names.index(f"{name}.{side}") for name in ("upperleg01", "upperleg02", "lowerleg01", "foot")}
        self.hip, self.knee, self.ankle = at["upperleg01"], at["lowerleg01"], at["foot"]
        self.thigh, self.shin = [at["upperleg01"], at["upperleg02"]], [at["lowerleg01"]]


def _runs(rows: Sequence[Row], pause: float) -> list[list[Row]]:
    """Rows with no more than so many seconds between them."""
    result: list[list[Row]] = []
    for row in rows:
        if not result or row.time - result[-1][-1].time > pause:
            result.append([])
        result[-1].append(row)
    return result


def sightings_of(frames: Frames) -> list[tuple[int, int, float, Sighting]]:
    """Track, frame's number, time and sighting of everybody in frames."""
    return [(track, index, time, seen) for index, time, sightings in frames for track, seen in sightings]
