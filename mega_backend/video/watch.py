"""Looks at a clip's frames: everywhere now and then, in between only where people were.

Frames come in chunks. People of the frame before are followed by the landmark network alone; the last frame of a chunk
is searched as a whole, and who is new there is followed backwards, so that nobody appears late. Nobody has a number
here: see `tracking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from mega_backend import people
from mega_backend.people.landmarks import MAIN
from mega_backend.people.looking import (
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
HEAD_AND_MAIN = (*range(11), *MAIN)
FEWEST_FOLLOWED = 6
"""Of somebody whom a neighbouring frame shows, so many landmarks of head and main joints must lie in the picture."""
FOLLOWED_AGREEMENT = 0.1
"""How much looks may differ at somebody whom a neighbouring frame shows, as `looking.AGREEMENT` of strangers."""
_POSE, _CIRCLE = ("points", "visibility", "world", "disagreement"), ("centre", "top", "score")


@dataclass(frozen=True)
class Followed:
    """Somebody in a frame, and by how many pixels (2,) they have moved from the neighbouring frame before or after."""

    pose: Pose
    moved: np.ndarray = field(default_factory=lambda: np.zeros(2))


class Watcher:
    """Finds the people of successive chunks of frames.

    Args:
        smallest: as of `people.find`. network: the networks to use; by default those that this process shares.
    """

    def __init__(self, smallest: float = 0.4, network: PoseNetwork | None = None) -> None:
        self.smallest = smallest
        self.network = network
        self._people: list[Followed] = []
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
        found: list[list[Followed]] = []
        for number, eye in enumerate(eyes):
            if cuts[number]:
                self._people = []
            if eye is not None:
                if cuts[number] or not self._begun:
                    self._people = self._search(frames[number], eye)
                    self._begun = True
                else:
                    self._people = _distinct([one for one in eye.map(_follow, self._people) if one is not None])
            found.append([] if eye is None else list(self._people))
            looked(number + 1)
        readable = [number for number, eye in enumerate(eyes) if eye is not None]
        if readable:
            self._look_around(frames, eyes, cuts, found, readable)
            self._people = list(found[readable[-1]])
        sightings = [
            [_sighting(frame.picture, one.pose) for one in people] for frame, people in zip(frames, found, strict=True)
        ]
        return sightings, cuts

    def state(self) -> dict[str, np.ndarray]:
        """What the next chunk needs to know of this one, as arrays that `restore` reads."""
        poses = [one.pose for one in self._people]
        histogram = np.zeros(0) if self._histogram is None else self._histogram
        return {
            **{f"pose_{name}": np.array([getattr(pose, name) for pose in poses]) for name in _POSE},
            **{f"circle_{name}": np.array([getattr(pose.circle, name) for pose in poses]) for name in _CIRCLE},
            "moved": np.array([one.moved for one in self._people]),
            "histogram": histogram,
            "begun": np.array(self._begun),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where a watcher with this state stopped."""
        self._begun = bool(state["begun"])
        self._histogram = state["histogram"] if len(state["histogram"]) else None
        self._people = []
        for number, moved in enumerate(state["moved"]):
            centre, top, score = (state[f"circle_{name}"][number] for name in _CIRCLE)
            parts = {name: state[f"pose_{name}"][number] for name in _POSE}
            parts["disagreement"] = float(parts["disagreement"])
            self._people.append(Followed(Pose(circle=Circle(centre, top, float(score)), **parts), moved))

    def _look_around(self, frames, eyes, cuts, found: list[list[Followed]], readable) -> None:
        """Search the last readable frame as a whole, and follow who is new there backwards."""
        last = readable[-1]
        for at in self._search(frames[last], eyes[last]):
            for number in reversed(readable):
                if number != last:
                    at = _follow(eyes[number], at)
                if at is None or any(is_same_person(at.pose, other.pose) for other in found[number]):
                    break
                found[number].append(at)
                if cuts[number]:
                    break

    def _search(self, frame: Frame, eye: Eye) -> list[Followed]:
        people_found = []
        for detection in people.find(frame.picture, smallest=self.smallest, network=eye.network):
            circle = circle_round(detection.landmarks, detection.score)
            look = eye.look(circle)
            pose = Pose(
                detection.landmarks[:, :2].astype(np.float64),
                detection.landmarks[:, 2].astype(np.float64),
                detection.landmarks_3d.astype(np.float64),
                replace(circle if look is None else look.circle, score=1.0),
            )
            people_found.append(Followed(pose))
        return people_found

    def _is_cut(self, frame: Frame) -> bool:
        if frame.picture is None:
            return False
        small = cv2.resize(frame.picture, (64, 36), interpolation=cv2.INTER_AREA)
        histogram = cv2.calcHist([small], [0, 1, 2], None, [6, 6, 6], [0, 256] * 3).ravel() / small[..., 0].size
        before, self._histogram = self._histogram, histogram
        return before is not None and float(np.minimum(before, histogram).sum()) < CUT


def _follow(eye: Eye, one: Followed) -> Followed | None:
    """The person of a neighbouring frame in this one, where they were, else where they were going; None for nobody.

    Who enters or leaves near the camera moves by half their size from one frame of a slow clip to the next.
    """
    pose = _looked_at(eye, one.pose, np.zeros(2))
    if pose is None and one.moved.any():
        pose = _looked_at(eye, one.pose, one.moved)
    return None if pose is None else Followed(pose, pose.circle.centre - one.pose.circle.centre)


def _looked_at(eye: Eye, pose: Pose, moved: np.ndarray) -> Pose | None:
    """A pose of a neighbouring frame, moved by some pixels (2,): two looks, one mirrored; None where they disagree."""
    circle = replace(pose.circle, centre=pose.circle.centre + moved, top=pose.circle.top + moved)
    look, mirrored = eye.look(circle), eye.look_mirrored(circle)
    if look is None or mirrored is None:
        return None
    seen = [i for i in HEAD_AND_MAIN if look.visibility[i] > 0.5 and inside(look.points[i], eye.shape)]
    if len(seen) < FEWEST_FOLLOWED:
        return None
    disagreement = distance(mirrored, look, seen)
    # Farther from where they are expected than a quarter of their size, the network sees somebody else.
    off = float(np.median(np.hypot(*(look.points - pose.points - moved)[seen].T)) / circle.radius)
    if disagreement > FOLLOWED_AGREEMENT or off > 0.25 or not 0.6 < look.circle.radius / circle.radius < 1.6:
        return None
    return combined([look, mirrored], disagreement)


def _distinct(followed: list[Followed]) -> list[Followed]:
    """One for each person."""
    poses = distinct_poses([one.pose for one in followed])
    return [one for pose in poses for one in followed if one.pose is pose]


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
