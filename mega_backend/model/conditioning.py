"""Conditioning on body landmarks: what a detector says about 33 points, as numbers and as conditioning tokens.

Positions are those of the person's square crop and rotations those of a camera that looks at the crop's centre: what
the crop alone determines. Where in the picture the crop lies enters afterwards and exactly, as a rotation of the view.
"""

import torch
from torch import nn

LANDMARK_COUNT = 33
FEATURE_COUNT = 8
# Crop coordinates beyond this are treated like the border: detectors extrapolate wildly outside the frame.
REACH = 1.5


def landmark_features(
    landmarks: torch.Tensor, visibility: torch.Tensor, landmarks_3d: torch.Tensor | None = None
) -> torch.Tensor:
    """Numbers the model reads, (B, 33, 8): x, y, visibility, present, X, Y, Z, has 3D.

    landmarks (B, 33, 2) in crop coordinates ([-1, 1] over the square box, x right, y down); visibility (B, 33) in
    [0, 1], negative or a position that is not finite for a landmark that is missing; landmarks_3d (B, 33, 3): the
    detector's own estimate in metres, camera axes, hip-centred, or None (a row of NaN: none for this person).
    """
    if landmarks.shape[1:] != (LANDMARK_COUNT, 2):
        raise ValueError(f"landmarks must be (B, {LANDMARK_COUNT}, 2) crop coordinates, not {tuple(landmarks.shape)}")
    present = (visibility >= 0) & landmarks.isfinite().all(-1)
    position = torch.where(present[..., None], landmarks, torch.zeros_like(landmarks)).clamp(-REACH, REACH)
    seen = torch.where(present, visibility, torch.zeros_like(visibility)).clamp(0, 1)
    if landmarks_3d is None:
        estimate = landmarks.new_zeros(len(landmarks), LANDMARK_COUNT, 3)
        known = torch.zeros_like(present)
    else:
        known = landmarks_3d.isfinite().all(-1)
        estimate = torch.where(known[..., None], landmarks_3d, torch.zeros_like(landmarks_3d)).clamp(-2, 2)
    flags = torch.stack([present, known], dim=-1).to(position.dtype)
    return torch.cat([position, seen[..., None], flags[..., :1], estimate, flags[..., 1:]], dim=-1)


class LandmarkEmbedding(nn.Module):
    """One conditioning token per landmark: its numbers through a small network, plus who it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.identity = nn.Parameter(0.02 * torch.randn(LANDMARK_COUNT, width))
        self.fc1 = nn.Linear(FEATURE_COUNT, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features (B, 33, 8) → tokens (B, 33, width)."""
        return self.fc2(torch.nn.functional.gelu(self.fc1(features) + self.identity))
