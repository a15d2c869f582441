"""From sightings to motion: hypotheses of every frame, one path through them, one body shape, smooth, feet that stand.

Frames are pushed in chunks and come back once everything that bears on them is known, about a second and a half
later. What is kept meanwhile are poses, not pictures or meshes, so memory does not grow with the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from mega_backend import camera
from mega_backend.people import square_crop
from mega_backend.recovery import COCO17_LANDMARKS, LANDMARK_ERROR, Recoverer
from mega_backend.recovery import _trust as landmark_trust
from mega_backend.refinement import Evidence, Refiner, Trust
from mega_backend.rig import Pose

from .path import PathFinder, PathOptions
from .smoothing import CUTOFFS, nearest_rotations, smooth, smooth_rotations
from .tracking import Sighting

ROWS = 40
"""Hypotheses that are decoded and refined together: bounds memory."""
HEELS_AND_TOES = {"left": (29, 31), "right": (30, 32)}


@dataclass(frozen=True)
class MotionOptions:
    """How motion is made. Times in seconds.

    hypotheses N per frame; seed, steps, temperature of the sampling; smoothing: off, light or strong. gap: the longest
    that is filled. shortest: people seen for less are no people. context: how far smoothing looks either way.
    """

    hypotheses: int = 5
    seed: int = 0
    steps: int = 5
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
class _Row:
    """One person in one frame, on the way. Poses (N, …) while the choice is open, then (1, …)."""

    index: int
    time: float
    sighting: Sighting
    pose: Pose
    joints: np.ndarray
    unlikeliness: np.ndarray
    hypothesis: int = -1


@dataclass
class _Person:
    """What is known of a track: rows whose choice is open, rows chosen, the body's shape."""

    open: list[_Row] = field(default_factory=list)
    chosen: list[_Row] = field(default_factory=list)
    finder: PathFinder | None = None
    shapes: list[np.ndarray] = field(default_factory=list)
    proven: bool = False

    def shape(self) -> np.ndarray:
        """The body's shape (S,): frames that differ from most count little."""
        shapes = np.stack(self.shapes[-600:])
        middle = np.median(shapes, axis=0)
        away = np.square(shapes - middle).mean(1)
        weights = 1 / (1 + away / max(np.median(away), 1e-6))
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
        if recoverer._refiner is None or not recoverer.reads_landmarks:
            raise ValueError("videos need a model of the bundled body that reads landmarks: use --model default")
        self.recoverer, self.size = recoverer, size
        self.focal_length = focal_length or camera.default_focal_length(size)
        self.options = options or MotionOptions()
        self.body = recoverer._refiner.rig.body
        self._refiner = recoverer._refiner
        # A person's shape is settled over the clip; a frame then moves the bones alone.
        self._settled = Refiner.__new__(Refiner)
        self._settled.__dict__.update(self._refiner.__dict__)
        self._settled.trust = Trust(shape=0.01, surface=0.06)
        self._bone_landmarks = _bone_landmarks(self.body.joint_names)
        self._people: dict[int, _Person] = {}
        self._waiting: list[tuple[int, float]] = []

    def push(self, frames: Sequence[tuple[int, float, Sequence[tuple[int, Sighting]]]]) -> list[FrameResult]:
        """Add frames (number, time, [(track, sighting)]); returns those that are done, in order."""
        rows = [
            (track, index, time, sighting)
            for index, time, sightings in frames
            for track, sighting in sightings
        ]  # fmt: skip
        for (track, *_), row in zip(rows, self._hypotheses(rows), strict=True):
            self._choose(self._people.setdefault(track, _Person()), row)
        self._waiting += [(index, time) for index, time, _ in frames]
        if not frames:
            return []
        now = frames[-1][1]
        for person in self._people.values():
            if person.open and now - person.open[-1].time > self.options.gap:
                self._close(person)
        return self._emit(now - self.options.gap - self.options.context)

    def finish(self) -> list[FrameResult]:
        """The frames that were still waiting."""
        for person in self._people.values():
            self._close(person)
        return self._emit(np.inf)

    # Hypotheses -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _hypotheses(self, rows: list) -> list[_Row]:
        """All hypotheses of sightings, each on its landmarks."""
        done: list[_Row] = []
        each = max(1, ROWS // self.options.hypotheses)
        for start in range(0, len(rows), each):
            done += self._some_hypotheses(rows[start : start + each])
        return done

    def _some_hypotheses(self, rows: list) -> list[_Row]:
        recoverer, options = self.recoverer, self.options
        count = options.hypotheses
        sightings = [sighting for *_, sighting in rows]
        crops = [square_crop(sighting.landmarks, self.size) for sighting in sightings]
        features = recoverer._features(None, crops, sightings)
        rotation, weak = (part.double().cpu().numpy() for part in recoverer._pose(features))
        best = recoverer.model.best(features)
        tokens, log_probability = best.tokens[:, None], best.log_probability[:, None]
        if count > 1:
            # The same noise in every frame of a person: hypothesis n of neighbouring frames then is the same idea.
            seeds = [options.seed * 1_000_003 + track for track, *_ in rows]
            drawn = recoverer.model.draw(features, count - 1, options.steps, options.temperature, generator=seeds)
            tokens = torch.cat([tokens, drawn.tokens], dim=1)
            log_probability = torch.cat([log_probability, drawn.log_probability], dim=1)
        tokens, log_probability = tokens.cpu().numpy(), log_probability.float().cpu().numpy()
        canonical = recoverer._decode(tokens.reshape(-1, tokens.shape[-1]))
        canonical = canonical.reshape(len(rows), count, *canonical.shape[1:])
        vertices = []
        for i, (sighting, crop) in enumerate(zip(sightings, crops, strict=True)):
            turn, start = recoverer._place(rotation[i], weak[i], crop, self.focal_length, self.size)
            turned = canonical[i] @ turn.T.astype(np.float32)
            seen = sighting.landmarks[list(COCO17_LANDMARKS)]
            translation = camera.fit_translation(
                recoverer._joints(turned, "coco17"),
                seen[:, :2],
                landmark_trust(seen, self.size),
                np.repeat(start[None], count, axis=0),
                self.focal_length,
                self.size,
                LANDMARK_ERROR * crop.side,
            )
            vertices.append(turned + translation[:, None].astype(np.float32))
        evidence = self._evidence([sighting for sighting in sightings for _ in range(count)])
        pose = self._refiner.rig.fit(self._tensor(np.concatenate(vertices)))
        pose = self._refiner.refine(pose, evidence)
        joints = self._joints(pose).reshape(len(rows), count, -1, 3)
        result = []
        for i, (_, index, time, sighting) in enumerate(rows):
            own = slice(i * count, (i + 1) * count)
            part = Pose(pose.rotations[own], pose.shape[own], pose.translation[own])
            unlikely = (log_probability[i].max() - log_probability[i]) / tokens.shape[-1]
            unlikely = 0.3 * unlikely + self._misfit(joints[i], sighting)
            result.append(_Row(index, time, sighting, part, joints[i], unlikely))
        return result

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array, np.float32))

    def _evidence(self, sightings: Sequence[Sighting]) -> Evidence:
        landmarks = np.stack([sighting.landmarks for sighting in sightings])
        trust = np.stack([landmark_trust(sighting.landmarks, self.size) for sighting in sightings])
        sides = np.array([square_crop(sighting.landmarks, self.size).side for sighting in sightings])
        pixels = landmarks[..., :2] - np.array(self.size) / 2
        return Evidence(self._tensor(pixels), self._tensor(trust), self.focal_length, self._tensor(sides))

    def _joints(self, pose: Pose) -> np.ndarray:
        joints = self.body.skin_joints(pose.rotations, pose.shape, "body22") + pose.translation[:, None]
        return joints.cpu().numpy()

    def _misfit(self, joints: np.ndarray, sighting: Sighting) -> np.ndarray:
        """(N,) how far elbows, wrists, knees and ankles lie from the landmarks, in hundredths of the box side."""
        points = camera.project(joints[:, [18, 19, 20, 21, 4, 5, 7, 8]], self.focal_length, self.size)
        seen = sighting.landmarks[[13, 14, 15, 16, 25, 26, 27, 28]]
        trust = landmark_trust(seen, self.size)
        side = max(sighting.box[2] - sighting.box[0], sighting.box[3] - sighting.box[1], 1.0)
        return (np.linalg.norm(points - seen[:, :2], axis=-1) * trust).sum(1) / max(trust.sum(), 1.0) / side * 20

    # The path -----------------------------------------------------------------------------------------------------

    def _choose(self, person: _Person, row: _Row) -> None:
        if person.open and row.time - person.open[-1].time > self.options.gap:
            self._close(person)
        if person.finder is None:
            person.finder = PathFinder(PathOptions())
        person.open.append(row)
        # Motion is judged without distance from the camera, which a single picture hardly shows.
        joints = row.joints - row.joints[:, :1]
        self._decide(person, person.finder.push(row.unlikeliness, joints, row.time))

    def _close(self, person: _Person) -> None:
        """Decide what is open: the person has gone."""
        if person.finder is not None:
            self._decide(person, person.finder.finish())
            person.finder = None

    @torch.no_grad()
    def _decide(self, person: _Person, choices: list[int]) -> None:
        if not choices:
            return
        rows, person.open = person.open[: len(choices)], person.open[len(choices) :]
        picked = [(row, choice) for row, choice in zip(rows, choices, strict=True)]
        person.shapes += [row.pose.shape[choice].cpu().numpy() for row, choice in picked]
        person.shapes = person.shapes[-600:]
        shape = self._tensor(person.shape())
        pose = Pose(
            torch.stack([row.pose.rotations[choice] for row, choice in picked]),
            shape.expand(len(rows), -1),
            torch.stack([row.pose.translation[choice] for row, choice in picked]),
        )
        # Seen as large as before with another size, the body stands elsewhere: the landmarks say where.
        pose = self._settled.refine(pose, self._evidence([row.sighting for row in rows]), steps=2)
        for i, (row, choice) in enumerate(picked):
            own = slice(i, i + 1)
            row.hypothesis = choice
            row.pose = Pose(pose.rotations[own], pose.shape[own], pose.translation[own])
            person.chosen.append(row)

    # Emission -----------------------------------------------------------------------------------------------------

    def _emit(self, horizon: float) -> list[FrameResult]:
        """Results of the waiting frames up to a time that nothing later bears on."""
        ready = [(index, time) for index, time in self._waiting if time <= horizon]
        if not ready:
            return []
        self._waiting = self._waiting[len(ready) :]
        found: dict[int, list[TrackedPerson]] = {index: [] for index, _ in ready}
        for track, person in sorted(self._people.items()):
            for stretch in self._stretches(person.chosen):
                length = stretch[-1].time - stretch[0].time
                person.proven = person.proven or length >= self.options.shortest
                if person.proven:
                    for index, result in self._moving(track, person, stretch, ready):
                        found[index].append(result)
        last = ready[-1][1]
        for person in self._people.values():
            person.chosen = [row for row in person.chosen if row.time > last - self.options.context]
        return [FrameResult(index, time, found[index]) for index, time in ready]

    def _stretches(self, rows: list[_Row]) -> list[list[_Row]]:
        """Rows without a gap that is too long to be filled."""
        result: list[list[_Row]] = []
        for row in rows:
            if not result or row.time - result[-1][-1].time > self.options.gap:
                result.append([])
            result[-1].append(row)
        return result

    @torch.no_grad()
    def _moving(
        self, track: int, person: _Person, rows: list[_Row], ready: list[tuple[int, float]]
    ) -> list[tuple[int, TrackedPerson]]:
        """The smooth motion of a stretch, for those of its frames that are ready; gaps between its rows are filled."""
        known = {row.index: row for row in rows}
        between = [(i, t) for i, t in ready if i not in known and rows[0].time < t < rows[-1].time]
        moments = sorted([(row.index, row.time) for row in rows] + between)
        wanted = [n for n, (index, _) in enumerate(moments) if ready[0][0] <= index <= ready[-1][0]]
        if not wanted:
            return []
        times = np.array([time for _, time in moments])
        bones = len(self._bone_landmarks)
        rotations = np.tile(np.eye(3), (len(moments), bones, 1, 1))
        translations, weights = np.zeros((len(moments), 3)), np.zeros((len(moments), bones))
        for n, (index, _) in enumerate(moments):
            if row := known.get(index):
                rotations[n] = row.pose.rotations[0].cpu().numpy()
                translations[n] = row.pose.translation[0].cpu().numpy()
                trust = landmark_trust(row.sighting.landmarks, self.size)
                # Half seen is hardly known: what is hidden follows from the frames before and after.
                weights[n] = np.array([trust[list(marks)].mean() for marks in self._bone_landmarks]).clip(0.05, 1) ** 2
        cutoff = CUTOFFS[self.options.smoothing]
        rotations = smooth_rotations(rotations, times, weights, cutoff)
        translations = self._placed(translations, times, weights[:, 0], cutoff)
        shape = self._tensor(person.shape()).expand(len(moments), -1)
        pose = Pose(self._tensor(nearest_rotations(rotations)), shape, self._tensor(translations))
        if self.options.hold_feet:
            pose = self._standing(pose, times, [known.get(index) for index, _ in moments])
        joints = self._joints(pose)
        results = []
        for n in wanted:
            index = moments[n][0]
            row = known.get(index)
            count = self.options.hypotheses
            results.append(
                (
                    index,
                    TrackedPerson(
                        track,
                        pose.rotations[n].cpu().numpy(),
                        pose.shape[n].cpu().numpy(),
                        pose.translation[n].cpu().numpy(),
                        joints[n],
                        np.full(4, np.nan, np.float32) if row is None else row.sighting.box,
                        np.full((33, 3), np.nan, np.float32) if row is None else row.sighting.landmarks,
                        -1 if row is None else row.hypothesis,
                        np.full((count, 22, 3), np.nan, np.float32) if row is None else row.joints,
                    ),
                )
            )
        return results

    def _placed(self, places: np.ndarray, times: np.ndarray, weights: np.ndarray, cutoff: float | None) -> np.ndarray:
        """Smoothed translations (F, 3): across the picture as sharply as the bones, in depth more calmly."""
        middle = self.body.head_mean[0].cpu().numpy()
        depth = np.log(np.maximum(places[:, 2] + middle[2], camera.NEAR))
        sideways = (places + middle)[:, :2] / np.exp(depth)[:, None]
        sideways = smooth(sideways, times, weights, cutoff)
        depth = np.exp(smooth(depth, times, weights, None if cutoff is None else cutoff / 4))
        return np.concatenate([sideways * depth[:, None], depth[:, None]], axis=1) - middle

    def _standing(self, pose: Pose, times: np.ndarray, rows: list[_Row | None]) -> Pose:
        """The body shifted so that a foot that stands in the picture stands in space too."""
        points = self.body.skin_joints(pose.rotations, pose.shape, "mediapipe33") + pose.translation[:, None]
        feet = points.double().cpu().numpy()
        shift, weight = np.zeros((len(times), 3)), np.full(len(times), 1e-3)
        for marks in HEELS_AND_TOES.values():
            stands = standing(times, [None if row is None else row.sighting for row in rows], marks)
            place = feet[:, list(marks)].mean(1)
            for start, stop in _runs(stands):
                if times[stop - 1] - times[start] >= 0.1:
                    shift[start:stop] += np.median(place[start:stop], axis=0) - place[start:stop]
                    weight[start:stop] += 1
        shift /= np.maximum(weight, 1)[:, None]
        shift = smooth(shift, times, weight.clip(0, 1), 4.0)
        return replace(pose, translation=pose.translation + self._tensor(shift))


def standing(times: np.ndarray, sightings: Sequence[Sighting | None], marks: Sequence[int]) -> np.ndarray:
    """In which frames (F,) bool a foot stands: heel and toe are seen and hardly move in the picture.

    marks: the numbers of its landmarks. Slower than 0.15 of the size of the person a second is standing.
    """
    known = [n for n, sighting in enumerate(sightings) if sighting is not None]
    result = np.zeros(len(times), bool)
    if len(known) < 3:
        return result
    points = np.stack([sightings[n].landmarks[list(marks)] for n in known]).astype(np.float64)
    sides = np.array([np.ptp(sightings[n].landmarks[:, :2], axis=0).max() for n in known])
    seen = points[..., 2].min(1) > 0.5
    place = smooth(points[..., :2].mean(1), times[known], np.ones(len(known)), 4.0)
    speed = np.linalg.norm(np.gradient(place, times[known], axis=0), axis=1) / np.maximum(sides, 1)
    result[known] = seen & (speed < 0.15)
    return result


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of the stretches of true in flags (F,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _bone_landmarks(names: Sequence[str]) -> list[tuple[int, ...]]:
    """For each bone the landmarks that show how it lies."""
    torso = (11, 12, 23, 24)
    kinds = {
        "upperleg": (25,), "lowerleg": (27,), "foot": (31, 29), "toe": (31, 29), "clavicle": (11,),
        "upperarm": (13,), "lowerarm": (15,), "wrist": (15, 19), "finger": (15, 19),
        "neck": (0, 7, 8), "head": (0, 7, 8),
    }  # fmt: skip
    result = []
    for name in names:
        marks = next((marks for prefix, marks in kinds.items() if name.startswith(prefix)), torso)
        result.append(tuple(mark + 1 for mark in marks) if name.endswith(".R") else marks)
    return result
