"""Several people in one picture.

MediaPipe's detector is made for one or two people that fill the picture. Looked at through square windows of several
sizes it also finds small and many people; the landmark network then says of each find whether somebody is there, and
where the body lies, from which a better crop follows. Finds of the same person are merged, and those whose landmarks
contradict each other are dropped.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from .landmarks import MAIN
from .looking import (
    Circle,
    Detection,
    Eye,
    Pose,
    as_detection,
    distance,
    distinct_poses,
    is_same_person,
    pyramid,
)
from .pose_network import PoseNetwork, shared_network

CANDIDATES = 40
"""At most so many finds are looked at closely, the best first."""
SURE = 0.5
"""From this detector score on, several crops are tried before a find is given up."""
DOUBTFUL = 8
"""After so many failures among finds below that score nobody is expected in what is left, which scores lower still."""
TRIES = 2
"""So many finds at one place are tried that way."""
BLINKERS = 0.55
"""Half width, over the body's radius, of what is seen of someone among others when all else failed."""


def find(
    picture: np.ndarray, limit: int = 20, smallest: float = 0.4, network: PoseNetwork | None = None
) -> list[Detection]:
    """Find the people in a picture, the largest first.

    Args:
        picture: (H, W, 3) uint8 RGB.
        limit: return at most so many people.
        smallest: leave out people smaller than this fraction of the largest: passers-by and crowds. 0 keeps all.
        network: the networks to use; by default those that this process shares.

    Returns:
        The people; empty where nobody is seen. The same picture gives the same answer.
    """
    eye = Eye(pyramid(picture), network or shared_network())
    poses: list[Pose] = []
    circles = eye.detect()[:CANDIDATES]
    failures = 0
    for circle in circles:
        if failures == DOUBTFUL:
            break
        if any(_is_round(circle, pose) for pose in poses):
            continue
        first = eye.look(circle)
        # Whoever looks like somebody already confirmed is not asked again.
        if first is None or any(is_same_person(first, pose) for pose in poses):
            continue
        pose = eye.follow(first)
        if pose is not None:
            poses.append(pose)
        else:
            failures += circle.score < SURE
    given_up: list[Circle] = []
    for circle in circles:
        if circle.score < SURE or any(_is_met(circle, pose, picture.shape) for pose in poses):
            continue
        if sum(_is_near(circle, other) for other in given_up) >= TRIES:
            continue
        pose = _look_past_neighbours(eye, circle)
        if pose is None:
            given_up.append(circle)
        else:
            poses.append(pose)
    poses = _without_phantoms(distinct_poses(poses), picture.shape)
    if not poses:
        return []
    sure = [pose for pose in poses if pose.circle.score >= SURE] or poses
    largest = max(pose.circle.radius for pose in sure)
    poses = [pose for pose in poses if pose.circle.radius >= smallest * largest]
    poses.sort(key=lambda pose: -pose.circle.radius)
    return [as_detection(pose, picture.shape) for pose in poses[:limit]]


def find_in_boxes(picture: np.ndarray, boxes: np.ndarray, network: PoseNetwork | None = None) -> list[Detection]:
    """The person in each box of a picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        boxes: (P, 4) x0, y0, x1, y1 in pixels, one person each.

    Returns:
        P people, in the order of the boxes.

    Raises:
        ValueError: a box is no box, or nobody is recognised in it.
    """
    eye = Eye(pyramid(picture), network or shared_network())
    found = []
    for number, box in enumerate(np.asarray(boxes, np.float64).reshape(-1, 4), 1):
        if not np.isfinite(box).all() or (box[2:] - box[:2] < 2).any():
            raise ValueError(f"box {number} is empty: give x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        looks = eye.map(Eye.look, _circles_in_box(eye, box))
        poses = [pose for look in looks if look is not None and (pose := eye.look(look.circle)) is not None]
        fits = [_overlap(as_detection(pose, picture.shape).box, box) for pose in poses]
        if max(fits, default=0.0) < 0.2:
            raise ValueError(f"nobody is recognised in box {number}: draw it round one whole person")
        found.append(as_detection(poses[int(np.argmax(fits))], picture.shape))
    return found


def _circles_in_box(eye: Eye, box: np.ndarray) -> list[Circle]:
    """Where the body in a box may lie: what the detector sees there, and guesses for whole and half bodies."""
    size, middle = box[2:] - box[:2], (box[:2] + box[2:]) / 2
    side = 1.4 * size.max()
    circles = eye.detect_in((*(middle - side / 2), side))
    for hips, radius in ((0.55, 0.6), (0.85, 0.9), (0.55, 0.75)):
        centre = np.array([middle[0], box[1] + hips * size[1]])
        circles.append(Circle(centre, centre - [0, radius * size.max()], 0.0))
    return circles


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    shared = _share_inside(one, other) * (one[2:] - one[:2]).prod()
    return float(shared / max((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared, 1e-6))


def _look_past_neighbours(eye: Eye, circle: Circle) -> Pose | None:
    """The person in a circle that the detector is sure of, tried upright in a few sizes and heights."""
    narrow = replace(eye, blinkers=BLINKERS)
    for attempt in _variants(circle):
        first = narrow.look(attempt)
        pose = first and narrow.follow(first)
        if pose is not None:
            # Now that the place is right, the whole view may show arms that the blinkers hid.
            wide = eye.look(pose.circle)
            agrees = wide is not None and distance(wide, pose, list(MAIN)) < 0.06
            return replace(wide, disagreement=pose.disagreement) if agrees else pose
    return None


def _variants(circle: Circle) -> Iterator[Circle]:
    """Other crops of the same find: upright, larger, lower, higher."""
    for scale, lower in ((1.0, 0.0), (1.2, 0.0), (1.0, 0.2), (1.0, -0.2)):
        centre = circle.centre + np.array([0, lower * circle.radius])
        yield replace(circle, centre=centre, top=centre - [0, scale * circle.radius])


def _is_met(circle: Circle, pose: Pose, shape: tuple[int, ...]) -> bool:
    """Whether a circle is about a person already found: its centre lies in that person's box."""
    box = as_detection(pose, shape).box
    margin = 0.1 * (box[2:] - box[:2]).max()
    return bool((circle.centre > box[:2] - margin).all() and (circle.centre < box[2:] + margin).all())


def _is_round(circle: Circle, pose: Pose) -> bool:
    """Whether a circle is so nearly that of a person already found that looking there would tell nothing new."""
    near = np.hypot(*(circle.centre - pose.circle.centre)) < 0.2 * pose.circle.radius
    return bool(near and 0.7 < circle.radius / pose.circle.radius < 1.4)


def _is_near(circle: Circle, other: Circle) -> bool:
    return bool(np.hypot(*(circle.centre - other.centre)) < 0.4 * min(circle.radius, other.radius))


def _without_phantoms(poses: list[Pose], shape: tuple[int, ...]) -> list[Pose]:
    """Without bodies that another one explains.

    Small ones that the detector doubts and that lie inside one it is surer of: folds and legs. And those of which it
    sees less than half, while half of their place belongs to somebody of whom it sees more: the same person upside
    down or turned round. On 100 rendered pictures the latter took away 11 of 21 people who were not there, and 1 of 102
    who were.
    """
    boxes = [as_detection(pose, shape).box for pose in poses]
    sights = [float(pose.visibility[list(MAIN)].mean()) for pose in poses]
    kept = []
    for pose, box, sight in zip(poses, boxes, sights, strict=True):
        inside = [_share_inside(box, outer) for outer in boxes]
        fold = pose.circle.score < SURE and any(
            share > 0.85 and other.circle.score > pose.circle.score for share, other in zip(inside, poses, strict=True)
        )
        double = sight < 0.5 and any(share > 0.5 and other > sight for share, other in zip(inside, sights, strict=True))
        if not (fold or double):
            kept.append(pose)
    return kept


def _share_inside(box: np.ndarray, outer: np.ndarray) -> float:
    """Which part of a box (4,) lies in another."""
    shared = np.clip(np.minimum(box[2:], outer[2:]) - np.maximum(box[:2], outer[:2]), 0, None).prod()
    return float(shared / max((box[2:] - box[:2]).prod(), 1e-6))
