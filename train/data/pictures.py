"""From pictures and annotations to training batches: decoding, cropping and augmentation, on the CPU, in workers.

One affine map takes the full picture to the crop. The same draw of scale, shift, rotation and mirroring moves the 2D
joints by that map, turns the root about the viewing axis, and exchanges left and right in the pose: picture, joints,
pose and mesh agree. Pixel coordinates are continuous: the first pixel covers [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pydantic import Field
from scipy.spatial.transform import Rotation
from torch import Tensor

from train.config import Config, UserError
from train.data.annotations import JOINT_MIRRORS, MIRROR_SMPL24, POSE_JOINTS, AnnotationError, Annotations

# Workers are the threads here. And a pool of OpenCV's own does not survive the fork that makes a worker: crops that
# were cut before it, to validate on, would have started one, and the worker would wait for it for ever.
cv2.setNumThreads(1)

# How often in a row a picture may be unreadable before training stops: more than that is a wrong folder.
PATIENCE = 20
_MIRROR_POSE = np.array(MIRROR_SMPL24[:POSE_JOINTS])


class BrokenPicture(UserError):
    """A picture that cannot be read or whose box misses it."""


class Augmentation(Config):
    """How crops vary in training; the defaults are those of the papers' line of work."""

    scale: float = Field(0.25, ge=0, lt=1, description="largest relative change of the box side, either way")
    shift: float = Field(0.05, ge=0, description="largest move of the box, in box sides")
    rotation: float = Field(30.0, ge=0, description="largest rotation in degrees")
    rotation_probability: float = Field(0.4, ge=0, le=1)
    flip_probability: float = Field(0.5, ge=0, le=1)
    colour: float = Field(0.3, ge=0, lt=1, description="largest relative change of each colour channel")
    blur_probability: float = Field(0.1, ge=0, le=1)
    occlusion_probability: float = Field(0.3, ge=0, le=1)

    @classmethod
    def none(cls) -> Augmentation:
        """Crops as they are: for evaluation."""
        return cls(
            scale=0,
            shift=0,
            rotation=0,
            rotation_probability=0,
            flip_probability=0,
            colour=0,
            blur_probability=0,
            occlusion_probability=0,
        )


@dataclass(frozen=True)
class View:
    """One draw of the geometry: relative box side, shift in box sides, rotation in radians (x towards y), mirroring."""

    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    flip: bool = False


def draw_view(augmentation: Augmentation, random: np.random.Generator) -> View:
    """A random view; the number of random numbers taken does not depend on the outcome."""
    scale, x, y, turn, turned, flipped = random.random(6)
    angle = np.deg2rad(augmentation.rotation) * (2 * turn - 1)
    return View(
        scale=float(1 + augmentation.scale * (2 * scale - 1)),
        shift=(float(augmentation.shift * (2 * x - 1)), float(augmentation.shift * (2 * y - 1))),
        angle=float(angle) if turned < augmentation.rotation_probability else 0.0,
        flip=bool(flipped < augmentation.flip_probability),
    )


def crop_matrix(centre: np.ndarray, side: float, size: int, view: View) -> np.ndarray:
    """Affine map (2, 3) from pixels of the full picture to pixels of the crop (size × size).

    The box is moved and scaled, the picture turned about the box's new centre, then mirrored left to right.
    """
    factor = size / (side * view.scale)
    cosine, sine = np.cos(view.angle), np.sin(view.angle)
    linear = factor * np.array([[cosine, -sine], [sine, cosine]])
    if view.flip:
        linear[0] *= -1
    middle = np.asarray(centre, np.float64) + side * np.array(view.shift)
    return np.column_stack([linear, size / 2 - linear @ middle])


def move_joints(joints: np.ndarray, matrix: np.ndarray, size: int, view: View, joint_set: str) -> np.ndarray:
    """Joints (J, 3) of the full picture as crop coordinates in [-1, 1] (J, 3); left and right exchanged if mirrored."""
    moved = joints.astype(np.float64)
    moved[:, :2] = 2 * (moved[:, :2] @ matrix[:, :2].T + matrix[:, 2]) / size - 1
    return moved[list(JOINT_MIRRORS[joint_set])] if view.flip else moved


def move_pose(pose: np.ndarray, view: View) -> np.ndarray:
    """The pose (66) whose body looks as the moved picture shows it."""
    vectors = pose.reshape(POSE_JOINTS, 3).astype(np.float64)
    if view.angle:
        root = Rotation.from_rotvec([0, 0, view.angle]) * Rotation.from_rotvec(vectors[0])
        vectors[0] = root.as_rotvec()
    if view.flip:
        # Mirroring x turns a rotation about (x, y, z) into one about (x, -y, -z).
        vectors = vectors[_MIRROR_POSE] * [1, -1, -1]
    return vectors.reshape(-1)


def read_picture(path: Path, shrink: int = 1) -> np.ndarray:
    """RGB (H, W, 3) uint8; a JPEG at 1 / shrink (1, 2, 4 or 8) of its size, which decodes several times faster."""
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    picture = cv2.imread(str(path), flags.get(shrink, cv2.IMREAD_REDUCED_COLOR_8))
    if picture is None:
        raise BrokenPicture(f"{path} is missing or damaged")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def cut(picture: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The crop (size, size, 3) that `matrix` (pixels of this picture → pixels of the crop) describes, black outside.

    Pictures that shrink by two or more are averaged over blocks of pixels first, so that nothing aliases.
    """
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]], float)
    inverse = np.linalg.inv(matrix[:, :2])
    corners = (corners - matrix[:, 2]) @ inverse.T
    low = np.maximum(np.floor(corners.min(0)).astype(int) - 2, 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + 2, [picture.shape[1], picture.shape[0]])
    if (high <= low).any():
        raise BrokenPicture("the person's box misses the picture")
    block = max(1, int(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2])))))
    if block > 1:
        whole = np.maximum((high - low) // block, 1)
        high = np.minimum(low + whole * block, high)
    region = picture[low[1] : high[1], low[0] : high[0]]
    linear, offset = matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ low
    if block > 1:
        shape = (max(1, region.shape[1] // block), max(1, region.shape[0] // block))
        stretch = np.array([region.shape[1] / shape[0], region.shape[0] / shape[1]])
        region = cv2.resize(region, shape, interpolation=cv2.INTER_AREA)
        linear = linear * stretch
    # OpenCV counts from the centre of the first pixel.
    offset = offset + linear @ [0.5, 0.5] - 0.5
    return cv2.warpAffine(region, np.column_stack([linear, offset]), (size, size), flags=cv2.INTER_LINEAR)


def recolour(crop: np.ndarray, augmentation: Augmentation, random: np.random.Generator) -> np.ndarray:
    """Change colours, blur, and put something in front of the person."""
    size = len(crop)
    gains = 1 + augmentation.colour * random.uniform(-1, 1, 3)
    contrast, offset = 1 + 0.5 * augmentation.colour * random.uniform(-1, 1), random.uniform(-1, 1)
    table = (np.arange(256)[:, None] - 128) * contrast + 128 + 32 * augmentation.colour * offset
    table = np.clip(table * gains, 0, 255).astype(np.uint8)
    crop = np.stack([cv2.LUT(crop[..., k], table[:, k]) for k in range(3)], -1)
    if random.random() < augmentation.blur_probability:
        crop = cv2.GaussianBlur(crop, (0, 0), sigmaX=size / 224 * random.uniform(0.5, 2.0))
    if random.random() < augmentation.occlusion_probability:
        middle, half = random.uniform(0, size, 2), random.uniform(0.05, 0.2, 2) * size
        colour = random.integers(0, 256, 3).tolist()
        axes, centre = tuple(half.astype(int).tolist()), tuple(middle.astype(int).tolist())
        if random.random() < 0.5:
            cv2.ellipse(crop, centre, axes, random.uniform(0, 180), 0, 360, colour, -1)
        else:
            corner = (centre[0] - axes[0], centre[1] - axes[1])
            cv2.rectangle(crop, corner, (centre[0] + axes[0], centre[1] + axes[1]), colour, -1)
    return crop


@dataclass(frozen=True)
class Source:
    """A dataset: who is in the pictures, where these lie, and its share of a batch.

    kept: pictures that were decoded before, where they are to be kept in memory (small pictures, read many times).
    """

    annotations: Annotations
    folder: Path
    share: float = 1.0
    kept: dict[tuple[Path, int], np.ndarray] | None = None

    def picture(self, path: Path, shrink: int) -> np.ndarray:
        """As `read_picture`."""
        if self.kept is None:
            return read_picture(path, shrink)
        if (path, shrink) not in self.kept:
            self.kept[path, shrink] = read_picture(path, shrink)
        return self.kept[path, shrink]

    def item(
        self, row: int, size: int, augmentation: Augmentation, random: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """One person's crop (3, size, size) uint8, pose (66), shape, gender, joints (J, 3) in crop coordinates.

        Raises:
            BrokenPicture: the picture cannot be read, or the box lies outside it.
        """
        table = self.annotations
        view = draw_view(augmentation, random)
        centre, side = table.centre[row].astype(np.float64), float(table.side[row])
        matrix = crop_matrix(centre, side, size, view)
        path = self.folder / str(table.names[row])
        shrink = 1
        if path.suffix.lower() in (".jpg", ".jpeg"):
            while shrink < 8 and side * view.scale >= 2 * shrink * size:
                shrink *= 2
        reduced = matrix * [shrink, shrink, 1]
        crop = recolour(cut(self.picture(path, shrink), reduced, size), augmentation, random)
        return {
            "picture": np.ascontiguousarray(crop.transpose(2, 0, 1)),
            "pose": move_pose(table.pose[row], view).astype(np.float32),
            "shape": table.shape[row],
            "gender": table.gender[row],
            "joints": move_joints(table.joints[row], matrix, size, view, table.joint_set).astype(np.float32),
        }


class Mixture:
    """Batches drawn from several datasets in fixed proportions."""

    def __init__(self, sources: Sequence[Source], size: int, augmentation: Augmentation) -> None:
        """
        Args:
            size: side of the crops in pixels.
        Raises:
            AnnotationError: the datasets have different bodies or joints, or no share is positive.
        """
        self.sources, self.size, self.augmentation = list(sources), size, augmentation
        kinds = {(source.annotations.body, source.annotations.joint_set) for source in sources}
        if len(kinds) != 1:
            raise AnnotationError(f"Datasets that are mixed must have the same body and joints, not {sorted(kinds)}.")
        shares = np.array([source.share for source in sources], float)
        if (shares < 0).any() or shares.sum() <= 0:
            raise AnnotationError("The datasets' shares must not be negative, and one must be positive.")
        self._edges = np.cumsum(shares / shares.sum())
        self._shape_size = min(source.annotations.shape.shape[1] for source in sources)

    def batch(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`count` people, a function of the generator's state.

        picture (B, 3, size, size) uint8, pose, shape, gender, joints, source (B) the number of the dataset, and
        skipped (1): how many broken pictures were replaced.
        """
        seeds = torch.randint(2**62, (count,), generator=generator).tolist()
        drawn = [self._draw(np.random.default_rng(seed)) for seed in seeds]
        batch = {name: torch.from_numpy(np.stack([d[0][name] for d in drawn])) for name in drawn[0][0]}
        batch["skipped"] = torch.tensor([sum(d[1] for d in drawn)])
        return batch

    def _draw(self, random: np.random.Generator) -> tuple[dict[str, np.ndarray], int]:
        for skipped in range(PATIENCE):
            number = int(np.searchsorted(self._edges, random.random(), side="right"))
            number = min(number, len(self.sources) - 1)
            source = self.sources[number]
            row = int(random.integers(len(source.annotations)))
            try:
                item = source.item(row, self.size, self.augmentation, random)
            except BrokenPicture as error:
                problem = error
                continue
            item["shape"] = item["shape"][: self._shape_size]
            item["source"] = np.int64(number)
            return item, skipped
        raise BrokenPicture(
            f"{PATIENCE} pictures in a row could not be used, the last because {problem}: check the picture folders."
        )


def in_order(source: Source, size: int, rows: Sequence[int]) -> Iterator[tuple[int, dict[str, np.ndarray] | None]]:
    """(row, item or None for a broken picture) without augmentation: for evaluation."""
    none, random = Augmentation.none(), np.random.default_rng(0)
    for row in rows:
        try:
            yield row, source.item(row, size, none, random)
        except BrokenPicture:
            yield row, None
