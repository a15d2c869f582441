"""What a detector said of people whose bodies are known, as `train.data.detector` writes it and training reads it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mega_backend.body import Body
from mega_backend.rotations import matrix_from_6d
from train.data.bank import Bank, prepare
from train.data.views import Views


@dataclass
class Detections:
    """N detected people with what is true of them; tensors.

    What the detector says, in the frame of the person's square crop, as `Views` holds it: landmarks (N, 33, 2),
    visibility (N, 33), landmarks_3d (N, 33, 3), score (N).
    What is true: rotation (N, 3, 3), canonical to the axes of a camera that looks at the crop's centre, camera (N, 3)
    = s, tx, ty, true_landmarks (N, 33, 2) in crop coordinates, seen (N, 33) whether the camera sees them.
    The bodies, as `Bank` holds them: rotations (N, J, 6) float16, shape (N, S) float16, root (N, 3, 3).
    Where it comes from: picture (N) number, person (N) number in it, crop (N, 3) centre and side, size (N, 2),
    focal_length (N).
    """

    landmarks: Tensor
    visibility: Tensor
    landmarks_3d: Tensor
    score: Tensor
    rotation: Tensor
    camera: Tensor
    true_landmarks: Tensor
    seen: Tensor
    rotations: Tensor
    shape: Tensor
    root: Tensor
    picture: Tensor
    person: Tensor
    crop: Tensor
    size: Tensor
    focal_length: Tensor

    def __len__(self) -> int:
        return len(self.score)

    @property
    def views(self) -> Views:
        """The detections as views: what a model is trained on."""
        return Views(self.landmarks, self.visibility, self.landmarks_3d, self.rotation, self.camera)

    def bank(self, body: Body) -> Bank:
        """The bodies, without tokens: see `bank.tokenise`."""
        return prepare(body, *self.posed())

    def posed(self) -> tuple[Tensor, Tensor]:
        """World rotations (N, J, 3, 3) and shape (N, S), as `Body.skin` takes them."""
        return matrix_from_6d(self.rotations.float()), self.shape.float()

    def save(self, path: str | Path) -> None:
        """Write all arrays to one npz file; half a file never bears the name."""
        path = Path(path)
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **{field.name: getattr(self, field.name).numpy() for field in fields(self)})
        partial.replace(path)

    @classmethod
    def load(cls, *paths: str | Path) -> Detections:
        """What `save` wrote, of several files one after the other."""
        parts = []
        for path in paths:
            if not Path(path).is_file():
                raise FileNotFoundError(f"no detections at {path}: make them with `python -m train.data.detector`")
            with np.load(path, allow_pickle=False) as file:
                parts.append(cls(**{field.name: torch.from_numpy(file[field.name]) for field in fields(cls)}))
        return cls.joined(parts)

    @classmethod
    def joined(cls, parts: list[Detections]) -> Detections:
        """Several as one."""
        return cls(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)})
