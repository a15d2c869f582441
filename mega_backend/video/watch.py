"""Looks at a clip's frames: everywhere now and then, in between only where people were.

Frames come in chunks. People of the frame before are followed by the landmark network alone; the last frame of a chunk
is searched as a whole, and who is new there is followed backwards, so that nobody appears late. Nobody has a number
here: see `tracking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np

from mega_backend import people
from mega_backend.people.looking import (
    AGREEMENT,
    FEWEST_SEEN,
    MAIN,
    Circle,
    Eye,
    Pose,
    as_detection,
    circle_round,
    combined,
    distance,
    distinct_poses,
    inside,
    is_same_person,
    pyramid,
)
from mega_backend.people.pose_network import PoseNetwork, shared_network

from .clips import Frame
from .tracking import Sighting

CUT = 0.55
"""Histograms of neighbouring frames that overlap by less than this belong to different shots."""
LEGS = (23, 24, 25, 26)
_POSE, _CIRCLE = ("points", "visibility", "world", "disagreement"), ("centre", "top", "score")


class Watcher:
    """Finds the people of successive chunks of frames.

    Args:
        smallest: as of `people.find`. network: the networks to use; by default those that this process shares.
    """

    def __init__(self, smallest: float = 0.4, network: PoseNetwork | None = None) -> None:
        self.smallest = smallest
        self.network = network
        self._poses: list[Pose] = []
        self._histogram: np.ndarray | None = None
        self._begun = False

    def watch(
        self, frames: Sequence[Frame], looked: Callable[[int], None] = lambda _: None
    ) -> tuple[list[list[Sighting]], list[bool]]:
        """Sightings of each frame, none where it is unreadable, and whether each begins another shot.

        looked: called with how many frames were looked at, after each.
        """
        network = self.network or shared_network()
        eyes = [None if f.picture is None else Eye(pyramid(f.picture), network) for f in frames]
        cuts = [self._is_cut(frame) for frame in frames]
        found: list[list[Pose]] = []
        for number, eye in enumerate(eyes):
            if cuts[number]:
                self._poses = []
            if eye is not None:
                before = self._poses
                if cuts[number] or not self._begun:
                    self._poses = self._search(frames[number], eye)
                    self._begun = True
                else:
                    followed = eye.map(_follow, before)
                    self._poses = distinct_poses([pose for pose in followed if pose is not None])
            found.append([] if eye is None else list(self._poses))
            looked(number + 1)
        readable = [number for number, eye in enumerate(eyes) if eye is not None]
        if readable:
            self._look_around(frames, eyes, cuts, found, readable)
            self._poses = list(found[readable[-1]])
        sightings = [
            [_sighting(frame.picture, pose) for pose in poses] for frame, poses in zip(frames, found, strict=True)
        ]
        return sightings, cuts

    def state(self) -> dict[str, np.ndarray]:
        """What the next chunk needs to know of this one, as arrays that `restore` reads."""
        poses = {f"pose_{name}": np.array([getattr(pose, name) for pose in self._poses]) for name in _POSE}
        circles = {f"circle_{name}": np.array([getattr(p.circle, name) for p in self._poses]) for name in _CIRCLE}
        histogram = np.zeros(0) if self._histogram is None else self._histogram
        return {**poses, **circles, "histogram": histogram, "begun": np.array(self._begun)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where a watcher with this state stopped."""
        self._begun = bool(state["begun"])
        self._histogram = state["histogram"] if len(state["histogram"]) else None
        self._poses = []
        for number in range(len(state["pose_points"])):
            centre, top, score = (state[f"circle_{name}"][number] for name in _CIRCLE)
            parts = {name: state[f"pose_{name}"][number] for name in _POSE}
            parts["disagreement"] = float(parts["disagreement"])
            self._poses.append(Pose(circle=Circle(centre, top, float(score)), **parts))

    def _look_around(self, frames, eyes, cuts, found, readable) -> None:
        """Search the last readable frame as a whole, and follow who is new there backwards."""
        last = readable[-1]
        for pose in self._search(frames[last], eyes[last]):
            at = pose
            for number in reversed(readable):
                if number != last:
                    at = _follow(eyes[number], at)
                if at is None or any(is_same_person(at, other) for other in found[number]):
                    break
                found[number].append(at)
                if cuts[number]:
                    break

    def _search(self, frame: Frame, eye: Eye) -> list[Pose]:
        detections = people.find(frame.picture, smallest=self.smallest, network=eye.network)
        poses = [eye.look(circle_round(detection.landmarks, detection.score)) for detection in detections]
        kept = []
        for detection, pose in zip(detections, poses, strict=True):
            own = Pose(
                detection.landmarks[:, :2].astype(np.float64),
                detection.landmarks[:, 2].astype(np.float64),
                detection.landmarks_3d.astype(np.float64),
                replace(circle_round(detection.landmarks, detection.score) if pose is None else pose.circle, score=1.0),
            )
            kept.append(own)
        return kept

    def _is_cut(self, frame: Frame) -> bool:
        if frame.picture is None:
            return False
        small = cv2.resize(frame.picture, (64, 36), interpolation=cv2.INTER_AREA)
        histogram = cv2.calcHist([small], [0, 1, 2], None, [6, 6, 6], [0, 256] * 3).ravel() / small[..., 0].size
        before, self._histogram = self._histogram, histogram
        return before is not None and float(np.minimum(before, histogram).sum()) < CUT


def _follow(eye: Eye, pose: Pose) -> Pose | None:
    """The person of a neighbouring frame in this one: two looks, one mirrored, that agree; None where they do not."""
    circle = pose.circle
    look, mirrored = eye.look(circle), eye.look_mirrored(circle)
    if look is None or mirrored is None:
        return None
    seen = [i for i in MAIN if look.visibility[i] > 0.5 and inside(look.points[i], eye.shape)]
    if len(seen) < FEWEST_SEEN:
        return None
    disagreement = distance(mirrored, look, seen)
    # Nobody moves by a quarter of their size from one frame to the next; the network then sees somebody else.
    moved = float(np.median(np.hypot(*(look.points - pose.points)[seen].T)) / circle.radius)
    if disagreement > AGREEMENT or moved > 0.25 or not 0.6 < look.circle.radius / circle.radius < 1.6:
        return None
    return combined([look, mirrored], disagreement)


def _sighting(picture: np.ndarray, pose: Pose) -> Sighting:
    detection = as_detection(pose, picture.shape)
    colours = clothes(picture, detection.landmarks)
    return Sighting(detection.box, detection.landmarks, detection.landmarks_3d, colours)


def clothes(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """What somebody wears: mean colours (6,) of trunk and thighs in Lab, [0, 1] each.

    Args:
        picture: (H, W, 3) uint8 RGB. landmarks: (33, 3) pixels and visibility.
    """
    height, width = picture.shape[:2]
    points = landmarks[:, :2]
    across, down = np.meshgrid(np.linspace(0.2, 0.8, 5), np.linspace(0.15, 0.9, 6))
    across, down = across.reshape(-1, 1), down.reshape(-1, 1)
    trunk = (1 - down) * ((1 - across) * points[11] + across * points[12])
    trunk = trunk + down * ((1 - across) * points[23] + across * points[24])
    along = np.linspace(0.2, 0.9, 10)[:, None]
    thighs = np.concatenate([(1 - along) * points[hip] + along * points[hip + 2] for hip in LEGS[:2]])
    colours = []
    for place in (trunk, thighs):
        x = np.clip(place[:, 0].astype(int), 0, width - 1)
        y = np.clip(place[:, 1].astype(int), 0, height - 1)
        lab = cv2.cvtColor(picture[y, x][None], cv2.COLOR_RGB2LAB)[0]
        colours.append(np.median(lab, axis=0) / 255)
    return np.concatenate(colours)
