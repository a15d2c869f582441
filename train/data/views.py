"""Synthetic views: what a landmark detector would say about a body, from any side, near or far, hidden or cut off.

No picture is rendered. A random camera looks at the body's landmarks; then come the detector's habits: noise that grows
where it does not see, left and right exchanged, points beyond the frame guessed, and a 3D estimate of its own that
flattens depth, leans, and turns single limbs. Everything is batched and drawn from an explicit generator.

Axes: camera x right, y down, z forward. The virtual camera looks at the person, as the crop does; crop coordinates are
[-1, 1] over the square box.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mega_backend.model.conditioning import landmark_features
from mega_backend.people.landmarks import MIRRORED
from mega_backend.rotations import about_axis, matrix_from_axis_angle, random_matrices

# The landmark each hangs from: 33 stands for the middle of the hips, 34 for the middle of the shoulders.
HIPS, NECK = 33, 34
PARENT = (34, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 34, 34, 11, 12, 13, 14, 15, 16, 15, 16, 15, 16, 33, 33, 23, 24, 25, 26, 27,
          28, 27, 28, -1, 33)  # fmt: skip
ORDER = (34, 0, *range(1, 33))
# Head and trunk, left and right arm, left and right leg: which of these each landmark belongs to.
LIMB_OF = (*([0] * 13), *(1 if i % 2 else 2 for i in range(13, 23)), 0, 0, *(3 if i % 2 else 4 for i in range(25, 33)))
FACE, ARMS, LEGS = slice(0, 11), slice(11, 23), slice(23, 33)
# How uncertain each landmark is, relative to the others: hands and feet more, face less.
LOOSENESS = torch.tensor([0.6] * 11 + [1.0] * 6 + [1.3] * 6 + [1.2] * 2 + [1.0] * 4 + [1.2] * 4)


@dataclass(frozen=True)
class ViewOptions:
    """How views are drawn. Angles in degrees, lengths in metres, noise in fractions of the body's size.

    poor: the share of views that the detector makes little of: errors up to three times as large, as they were measured
    on small rendered people (median 2–3 % where seen, around 12 % where hidden; the estimate's PA-MPJPE 95–110 mm).
    measured: the share of views with errors of real detections, where such are given; mixed: the share of these whose
    limbs err as different people's did, more or less far. Whole people's errors alone would be learnt by heart: a
    network that had seen each of 1,078 of them 50,000 times was off by 25 mm under these and by 102 mm under others.
    """

    pitch: float = 15.0
    roll: float = 6.0
    any_orientation: float = 0.05
    near: float = 1.2
    far: float = 15.0
    noise: float = 0.008
    hidden_noise: float = 0.035
    poor: float = 0.5
    measured: float = 0.4
    mixed: float = 0.7
    swapped: float = 0.03
    turned_around: float = 0.02
    cut_off: float = 0.3
    occluded: float = 0.35
    missing: float = 0.1
    has_estimate: float = 0.8
    estimate_angle: float = 11.0
    depth_flip: float = 0.06
    flattening: float = 0.2
    margin: tuple[float, float] = (1.1, 1.4)

    def benign(self, poor: float = 0.0) -> "ViewOptions":
        """The same cameras and noise, with nobody cut off or occluded by others, and the 3D estimate always there."""
        return ViewOptions(cut_off=0.0, occluded=0.0, missing=0.0, has_estimate=1.0, poor=poor)


class Views(NamedTuple):
    """A batch of views.

    landmarks (B, 33, 2) in crop coordinates, visibility (B, 33) (−1: missing), landmarks_3d (B, 33, 3) metres (NaN
    rows: no estimate): what the detector says. rotation (B, 3, 3) and camera (B, 3) = s, tx, ty: the truth.
    """

    landmarks: Tensor
    visibility: Tensor
    landmarks_3d: Tensor
    rotation: Tensor
    camera: Tensor

    @property
    def features(self) -> Tensor:
        """What the model reads, (B, 33, 8)."""
        return landmark_features(self.landmarks, self.visibility, self.landmarks_3d)


class _Random:
    """Draws on the generator's device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.device = generator, generator.device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def happens(self, chance: float, *shape: int) -> Tensor:
        return self.uniform(*shape) < chance


class Measured(NamedTuple):
    """What a detector really said of N people: errors to draw from, lengths relative to the person's extent.

    pose (N, 33, 3): the true landmarks from the hips, camera axes; landmarks (N, 33, 2): how far off in the picture;
    visibility (N, 33); landmarks_3d (N, 33, 3): the detector's estimate less the truth. Made by `measured`.
    """

    pose: Tensor
    landmarks: Tensor
    visibility: Tensor
    landmarks_3d: Tensor

    def like(self, metric: Tensor, size: Tensor, random: "_Random", mixed: float, nearest: int = 16) -> Tensor:
        """For each landmark of B people (metric (B, 33, 3), camera axes) whose error it takes, (B, 33).

        One of those measured in the most similar poses; a share `mixed` of the people takes each limb's from another.
        """
        pose = (metric - metric[:, 23:25].mean(1, keepdim=True)) / size[:, None, None]
        close = torch.cdist(pose.flatten(1), self.pose.flatten(1)).topk(nearest, largest=False).indices
        pick = (random.uniform(len(metric), 5) * nearest).long()
        pick = torch.where(random.happens(mixed, len(metric), 1), pick, pick[:, :1])
        limb = torch.tensor(LIMB_OF, device=metric.device)
        return close.gather(1, pick)[:, limb]


def measured(points: Tensor, said: Views, true_landmarks: Tensor) -> Measured:
    """Errors of real detections, and their mirror images.

    points (N, 33, 3): the people's canonical landmarks; said: what was detected, with the true rotation and camera;
    true_landmarks (N, 33, 2): where in the crop the landmarks are.
    """
    metric = points @ said.rotation.mT
    size = (metric.amax(1) - metric.amin(1)).amax(-1)
    pose = (metric - metric[:, 23:25].mean(1, keepdim=True)) / size[:, None, None]
    off = (said.landmarks - true_landmarks) / (said.camera[:, :1] * size[:, None])[..., None]
    estimate = said.landmarks_3d / size[:, None, None] - pose
    parts = (pose, off, said.visibility, estimate)
    mirror = torch.tensor(MIRRORED, device=points.device)
    flip = [part[:, mirror].clone() for part in parts]
    for part in (flip[0], flip[1], flip[3]):
        part[..., 0] *= -1
    return Measured(*(torch.cat(both) for both in zip(parts, flip, strict=True)))


def draw(
    points: Tensor,
    root: Tensor,
    generator: torch.Generator,
    options: ViewOptions | None = None,
    errors: Measured | None = None,
) -> Views:
    """Views of bodies.

    Args:
        points: (B, 33, 3) landmarks in canonical axes (root rotation removed, the mesh's mean at the origin), metres.
        root: (B, 3, 3) root rotation in a world with Y up; its heading is replaced by a random one.
        generator: on the device of the points.
        errors: a share `options.measured` of the views errs as people in similar poses were seen to.
    """
    options = options or ViewOptions()
    random = _Random(generator)
    rotation = camera_rotations(root, random, options)
    metric = points @ rotation.mT
    size = (metric.amax(1) - metric.amin(1)).amax(-1)

    distance = torch.exp(random.uniform(len(points), low=math.log(options.near), high=math.log(options.far)))
    # Seen from nearer than the body is large, no camera would show it: children may be near, adults not.
    distance = torch.maximum(distance, 1.1 * size)
    offset = random.normal(len(points), 2) * 0.1 * size[:, None]
    flat = project(metric, distance, offset)

    hidden = behind_torso(metric, flat, random) | occluded(flat, random, options)
    outside = beyond_frame(flat, random, options)
    worse = torch.where(random.happens(options.poor, len(points)), random.uniform(len(points), low=1.0, high=3.5), 1.0)
    visibility = reported_visibility(hidden, outside, random)
    noisy = detector_noise(flat, size, hidden, outside, visibility, worse, random, options)
    swap = swapped_sides(random, len(points), options)
    around = random.happens(options.turned_around, len(points))
    swap = torch.where(around[:, None], torch.tensor(MIRRORED, device=points.device), swap)
    noisy, visibility = torch.gather(noisy, 1, swap[..., None].expand(-1, -1, 2)), visibility.gather(1, swap)

    real = None
    if errors is not None:
        real = random.happens(options.measured, len(points))
        which = errors.like(metric, size, random, options.mixed)
        landmark = torch.arange(33, device=points.device)
        more = torch.where(
            random.happens(options.mixed, len(points)), random.uniform(len(points), low=0.4, high=1.2), 1.0
        )
        amount = (more * size)[:, None, None]
        noisy = torch.where(real[:, None, None], flat + errors.landmarks[which, landmark] * amount, noisy)
        visibility = torch.where(real[:, None], errors.visibility[which, landmark], visibility)
    centre, side = square_box(noisy, visibility, random, options)
    landmarks = (noisy - centre[:, None]) * (2 / side)[:, None, None]
    truth = (flat - centre[:, None]) * (2 / side)[:, None, None]
    camera = fit_camera(metric, truth)

    estimate = detector_estimate(metric, noisy, hidden | outside, worse, random, options)
    estimate = torch.gather(estimate, 1, swap[..., None].expand(-1, -1, 3))
    # Whoever takes a back for a front sees a believable person: mirrored in depth, left and right exchanged.
    estimate[..., 2] = torch.where(around[:, None], -estimate[..., 2], estimate[..., 2])
    if real is not None:
        seen = metric - metric[:, 23:25].mean(1, keepdim=True) + errors.landmarks_3d[which, landmark] * amount
        estimate = torch.where(real[:, None, None], seen, estimate)
    estimate[~random.happens(options.has_estimate, len(points))] = math.nan
    partial = random.happens(options.missing, len(points))
    gone = partial[:, None] & (random.uniform(len(points), 33) < random.uniform(len(points), 1, high=0.5))
    return Views(landmarks, visibility.masked_fill(gone, -1.0), estimate, rotation, camera)


def camera_rotations(root: Tensor, random: "_Random", options: ViewOptions) -> Tensor:
    """Canonical → camera axes (B, 3, 3): any heading, mostly level cameras, some from above or below, rolled."""
    count = len(root)
    heading = about_axis(1, random.uniform(count, high=2 * math.pi))
    wide = random.happens(0.15, count)
    pitch = torch.where(wide, 40.0, options.pitch) * random.normal(count) + 6.0
    roll = torch.where(random.happens(0.06, count), 60.0, options.roll) * random.normal(count)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], device=root.device))
    tilt = about_axis(2, torch.deg2rad(roll)) @ about_axis(0, torch.deg2rad(pitch))
    rotation = tilt @ flip @ heading @ root
    anyhow = random.happens(options.any_orientation, count)
    return torch.where(anyhow[:, None, None], random_matrices(count, random.generator).to(root), rotation)


def project(points: Tensor, distance: Tensor, offset: Tensor) -> Tensor:
    """Perspective projection (B, N, 2) in metres at the body's own depth; points (B, N, 3) around the origin."""
    depth = 1 + points[..., 2] / distance[:, None]
    # Farther out than a right angle from the axis nothing is seen: such points are far outside any frame anyway.
    return (points[..., :2] + offset[:, None]) / depth.clamp_min(0.15)[..., None]


def behind_torso(points: Tensor, flat: Tensor, random: "_Random") -> Tensor:
    """Which landmarks (B, 33) the person's own torso, head or nearer limbs hide."""
    corners = points[:, [11, 12, 24, 23]]
    u = torch.tensor([0.25, 0.75, 0.25, 0.75, 0.5, 0.5], device=points.device)
    v = torch.tensor([0.15, 0.15, 0.5, 0.5, 0.5, 0.9], device=points.device)
    weights = torch.stack([(1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v], dim=-1)
    torso = weights @ corners
    width = (points[:, 11] - points[:, 12]).norm(dim=-1)
    apart = torch.cdist(points[..., :2], torso[..., :2])
    deeper = points[:, :, None, 2] - torso[:, None, :, 2]
    hidden = ((apart < 0.45 * width[:, None, None]) & (deeper > 0.35 * width[:, None, None])).any(-1)
    # The torso's own corners are always found; a face turned away is guessed.
    hidden[:, [11, 12, 23, 24]] = False
    away = points[:, 0, 2] > points[:, 7:9, 2].mean(-1)
    hidden[:, FACE] |= (away & random.happens(0.7, len(points)))[:, None]
    return hidden


def occluded(flat: Tensor, random: "_Random", options: ViewOptions) -> Tensor:
    """Which landmarks (B, 33) lie behind something else in the picture: a disc or a half-plane's edge."""
    count = len(flat)
    low, high = flat.amin(1), flat.amax(1)
    centre = low + (high - low) * random.uniform(count, 2)
    radius = (high - low).amax(-1) * random.uniform(count, low=0.08, high=0.35)
    squash = torch.exp(0.5 * random.normal(count, 2))
    disc = ((flat - centre[:, None]) * squash[:, None]).norm(dim=-1) < radius[:, None]
    return disc & random.happens(options.occluded, count)[:, None]


def beyond_frame(flat: Tensor, random: "_Random", options: ViewOptions) -> Tensor:
    """Which landmarks (B, 33) the picture's frame cuts off: mostly from below (half bodies), or at a side."""
    count = len(flat)
    angle = math.pi / 2 + torch.where(random.happens(0.65, count), 0.05, 1.5) * random.normal(count)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    along = (flat * direction[:, None]).sum(-1)
    low, high = along.amin(1), along.amax(1)
    # At least the head and shoulders of a person cut off from below stay in the picture.
    edge = low + (high - low) * random.uniform(count, low=0.35, high=0.98)
    return (along > edge[:, None]) & random.happens(options.cut_off, count)[:, None]


def detector_noise(
    flat: Tensor,
    size: Tensor,
    hidden: Tensor,
    outside: Tensor,
    visibility: Tensor,
    worse: Tensor,
    random: "_Random",
    options: ViewOptions,
) -> Tensor:
    """Landmarks (B, 33, 2) where the detector puts them: an error of the whole limb and one of each point."""
    count = len(flat)
    skill = torch.exp(0.4 * random.normal(count, 1)) * worse[:, None]
    level = options.noise * skill * LOOSENESS.to(flat)
    level = torch.where(hidden, options.hidden_noise * skill, level)
    level = torch.where(outside, 2.5 * options.hidden_noise * skill, level)
    # What it reports as doubtful is worse indeed.
    level = level * (1.0 + 1.2 * (0.8 - visibility).clamp_min(0))
    # Heavy tails: now and then a point is simply wrong.
    level = level * torch.where(random.happens(0.03, count, 33), 4.0, 1.0)
    own = random.normal(count, 33, 2)
    shared = own.clone()
    for joint in ORDER:
        if PARENT[joint] < 33 and joint < 33:
            shared[:, joint] = 0.6 * shared[:, PARENT[joint]] + 0.8 * own[:, joint]
    return flat + shared * (level * size[:, None])[..., None]


def reported_visibility(hidden: Tensor, outside: Tensor, random: "_Random") -> Tensor:
    """The detector's own idea (B, 33) of what it sees: near 1, doubtful, or low; now and then plainly wrong.

    Of the face and the torso's corners it is always sure; of limbs, at times of none of a whole person's.
    """
    count = len(hidden)
    seen = 1 - 0.12 * random.uniform(count, 33).square()
    shy = random.uniform(count, 1, high=0.9) * random.happens(0.5, count, 1)
    limbs = torch.ones(33, dtype=torch.bool, device=hidden.device)
    limbs[[*range(13), 23, 24]] = False
    seen = torch.where(limbs, seen * (1 - shy * random.uniform(count, 33)), seen)
    doubtful = random.uniform(count, 33, low=0.05, high=0.95)
    visibility = torch.where(hidden, doubtful, seen)
    visibility = torch.where(outside, 0.35 * random.uniform(count, 33).square(), visibility)
    return torch.where(random.happens(0.04, count, 33), random.uniform(count, 33), visibility)


def swapped_sides(random: "_Random", count: int, options: ViewOptions) -> Tensor:
    """Which landmark (B, 33) long is reported in each place: arms, legs or both exchanged in a few."""
    own = torch.arange(33, device=random.device).expand(count, 33)
    mirrored = torch.tensor(MIRRORED, device=random.device).expand(count, 33)
    draw = random.uniform(count, 2) < options.swapped
    both = random.happens(options.swapped / 2, count)[:, None]
    which = torch.zeros(count, 33, dtype=torch.bool, device=random.device)
    which[:, ARMS] = draw[:, :1] | both
    which[:, LEGS] = draw[:, 1:] | both
    which[:, FACE] = both
    return torch.where(which, mirrored, own)


def square_box(landmarks: Tensor, visibility: Tensor, random: "_Random", options: ViewOptions) -> tuple[Tensor, Tensor]:
    """Centre (B, 2) and side (B) of a square around the landmarks that the detector says it sees, jittered."""
    seen = visibility > 0.5
    seen = torch.where(seen.sum(1, keepdim=True) >= 3, seen, torch.ones_like(seen))[..., None]
    low = landmarks.masked_fill(~seen, math.inf).amin(1)
    high = landmarks.masked_fill(~seen, -math.inf).amax(1)
    side = (high - low).amax(-1).clamp_min(0.05) * random.uniform(
        len(landmarks), low=options.margin[0], high=options.margin[1]
    )
    centre = (low + high) / 2 + 0.03 * side[:, None] * random.normal(len(landmarks), 2)
    return centre, side


def fit_camera(points: Tensor, crop: Tensor) -> Tensor:
    """Weak perspective s, tx, ty (B, 3): s·(points_xy + t) nearest to crop (B, N, 2); points (B, N, 3) camera axes."""
    flat = points[..., :2]
    mean, crop_mean = flat.mean(1), crop.mean(1)
    centred = flat - mean[:, None]
    scale = (centred * (crop - crop_mean[:, None])).sum((1, 2)) / centred.square().sum((1, 2)).clamp_min(1e-9)
    scale = scale.clamp_min(1e-2)
    return torch.cat([scale[:, None], crop_mean / scale[:, None] - mean], dim=1)


def detector_estimate(
    points: Tensor, flat: Tensor, unseen: Tensor, worse: Tensor, random: "_Random", options: ViewOptions
) -> Tensor:
    """The detector's own 3D landmarks (B, 33, 3), hip-centred: limbs turned, depth flattened, the whole leaning.

    Across the picture it says mostly what its landmarks (B, 33, 2), `flat`, say; depth is where it guesses. Measured on
    369 rendered people: x and y are off from the truth as the landmarks are (correlation 0.8) and half as far from
    these; depths of bones are half as large as they should be on average, a sixth of the large ones of wrong sign.
    """
    count = len(points)
    hips, neck = points[:, 23:25].mean(1), points[:, 11:13].mean(1)
    full = torch.cat([points, hips[:, None], neck[:, None]], dim=1)
    parent = torch.tensor((*PARENT[:33], HIPS, HIPS), device=points.device)
    bones = full - full[:, parent]
    doubt = torch.cat([unseen, torch.zeros_like(unseen[:, :2])], dim=1)

    spread = math.radians(options.estimate_angle) / math.sqrt(3) * torch.exp(0.4 * random.normal(count, 1))
    spread = spread * worse.sqrt()[:, None]
    angle = spread * torch.where(doubt, 2.2, 1.0)
    own = random.normal(count, 35, 3)
    turns = own.clone()
    for joint in ORDER:  # what hangs from a limb is turned with it, only partly so: the detector looks at every joint
        turns[:, joint] = 0.5 * turns[:, PARENT[joint]] + 0.87 * own[:, joint]
    bones = (matrix_from_axis_angle(turns * angle[..., None]) @ bones[..., None])[..., 0]
    # A limb may point towards the camera instead of away from it.
    flip = random.uniform(count, 35) < options.depth_flip * torch.where(doubt, 2.0, 1.0) * worse[:, None]
    flip[:, :11] = flip[:, 33:] = flip[:, 23:25] = False
    bones[..., 2] = torch.where(flip, -bones[..., 2], bones[..., 2])
    bones = bones * (1 + 0.06 * random.normal(count, 35, 1))

    placed = torch.zeros_like(full)
    for joint in (23, 24, *ORDER[:24], *range(25, 33)):
        placed[:, joint] = placed[:, PARENT[joint]] + bones[:, joint]
    placed = placed - placed[:, 23:25].mean(1, keepdim=True)
    # Depth is flattened or stretched, the whole leans, and everybody is taken for a person of the usual size.
    placed[..., 2] *= torch.exp(options.flattening * (random.normal(count, 1) - 1))
    lean = torch.stack([9.0 * random.normal(count), 5.0 * random.normal(count), 3.0 * random.normal(count)], dim=-1)
    placed = placed @ matrix_from_axis_angle(torch.deg2rad(lean)).mT
    own_flat = flat - flat[:, 23:25].mean(1, keepdim=True)
    follows = random.uniform(count, 1, 1, low=0.5, high=1.0)
    placed[:, :33, :2] = follows * own_flat + (1 - follows) * placed[:, :33, :2]
    torso = (neck - hips).norm(dim=-1).clamp_min(0.05)
    usual = 0.464 / torso * torch.exp(0.08 * random.normal(count))
    return placed[:, :33] * usual[:, None, None]
