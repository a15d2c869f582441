"""What a model is conditioned on: the landmarks of a person's crop, or the crop itself. Once per person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mega_backend.model.conditioning import landmark_features
from mega_backend.people import Crop

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]: image backbones take pictures less the first, over the second."""


def reads_landmarks(model: Any) -> bool:
    """Whether a model looks at the detector's landmarks; otherwise at the picture itself."""
    return getattr(model, "kind", "image") == "landmarks" and not hasattr(model, "backbone")


def features(model: Any, image: np.ndarray | None, crops: Sequence[Crop], seen: Sequence[Any], device: torch.device):
    """What `model` is conditioned on, one row for each of P people.

    Args:
        image: (H, W, 3) uint8; None suffices for a model that reads landmarks.
        seen: anything with landmarks (33, 3) and landmarks_3d (33, 3), as `people.Detection` has them.

    Raises:
        ValueError: the model looks at the picture and has no backbone to do so.
    """
    of = _of_landmarks(crops, seen, device) if reads_landmarks(model) else _of_picture(model, image, crops, device)
    return model.condition(of) if hasattr(model, "condition") else of


def _of_landmarks(crops: Sequence[Crop], seen: Sequence[Any], device: torch.device) -> torch.Tensor:
    numbers = [
        np.concatenate([crop.from_picture(person.landmarks[:, :2]), person.landmarks[:, 2:], person.landmarks_3d], 1)
        for crop, person in zip(crops, seen, strict=True)
    ]
    stacked = torch.as_tensor(np.stack(numbers), dtype=torch.float32, device=device)
    return landmark_features(stacked[..., :2], stacked[..., 2], stacked[..., 3:])


def _of_picture(model: Any, image: np.ndarray, crops: Sequence[Crop], device: torch.device) -> Any:
    backbone = getattr(model, "backbone", None) or getattr(model, "backbone_pose", None)
    if backbone is None:
        raise ValueError("this model was imported without its image backbone: import the whole checkpoint")
    cut = np.stack([crop.cut(image, backbone.input_size) for crop in crops])
    tensor = torch.as_tensor(cut, device=device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return model.features((tensor - mean) / std)
