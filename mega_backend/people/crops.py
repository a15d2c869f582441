"""The square crop of a person: what the models look at, and the frame of the landmarks given to them."""

from dataclasses import dataclass

import cv2
import numpy as np

MARGIN = 1.25
"""Side of the crop over the longer side of the box round the visible landmarks."""


@dataclass(frozen=True)
class Crop:
    """A square of a picture: centre x, y and side in pixels."""

    x: float
    y: float
    side: float

    def from_picture(self, points: np.ndarray) -> np.ndarray:
        """Pixels (…, 2) → crop coordinates (…, 2), [-1, 1] over the square, x right, y down."""
        return (points - [self.x, self.y]) * (2 / self.side)

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Crop coordinates (…, 2) → pixels (…, 2)."""
        return points * (self.side / 2) + [self.x, self.y]

    def cut(self, picture: np.ndarray, resolution: int) -> np.ndarray:
        """The crop (resolution, resolution, 3) of a picture (H, W, 3) uint8, black outside."""
        zoom = self.side / resolution
        height, width = picture.shape[:2]
        if zoom > 1:
            # Average before sampling: bilinear sampling alone would alias.
            size = (max(1, round(width / zoom)), max(1, round(height / zoom)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        scale = np.array([picture.shape[1] / width, picture.shape[0] / height])
        corner = (np.array([self.x, self.y]) - self.side / 2) * scale
        step = zoom * scale
        # Pixel centres lie at half numbers on both sides.
        matrix = np.array([[step[0], 0, corner[0] + step[0] / 2 - 0.5], [0, step[1], corner[1] + step[1] / 2 - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(picture, matrix, (resolution, resolution), flags=flags, borderMode=cv2.BORDER_CONSTANT)


def visible_box(landmarks: np.ndarray, picture_size: tuple[int, int]) -> np.ndarray:
    """The box (4,) x0, y0, x1, y1 round the visible landmarks, cut to the picture.

    Args:
        landmarks: (33, 3) x, y in pixels, visibility.
        picture_size: width, height.
    """
    size = np.array(picture_size, np.float64)
    points = landmarks[:, :2].astype(np.float64)
    inside = ((points >= 0) & (points <= size)).all(axis=1)
    shown = points[inside & (landmarks[:, 2] > 0.5)]
    if len(shown) < 4:
        shown = np.clip(points, 0, size)
    return np.concatenate([shown.min(axis=0), shown.max(axis=0)])


def square_crop(landmarks: np.ndarray, picture_size: tuple[int, int]) -> Crop:
    """The crop of a person with these landmarks (33, 3) in a picture of this width and height."""
    x0, y0, x1, y1 = visible_box(landmarks, picture_size)
    return Crop((x0 + x1) / 2, (y0 + y1) / 2, max(MARGIN * max(x1 - x0, y1 - y0), 8.0))
