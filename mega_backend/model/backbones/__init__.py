"""Image backbones in their published parameter names: a crop in, a feature map out.

``build(name, **options)`` makes one; the defaults are the published sizes. Every backbone has ``channels`` (of its
feature map) and ``input_size`` (side in pixels of the square crop that it was trained on), and takes RGB crops that
``mega_backend.people.crops`` prepared. "reader" gives landmark features ``(B, 33, 8)`` in the place of a map.
"""

from __future__ import annotations

from torch import nn

from .hrnet import HRNet
from .reader import Reader
from .resnet import ResNet
from .vit import ViT

BACKBONES: dict[str, type[nn.Module]] = {"hrnet": HRNet, "reader": Reader, "resnet": ResNet, "vit": ViT}


def build(name: str, **options) -> nn.Module:
    """The backbone ``name`` ("hrnet", "reader", "resnet" or "vit"); options are the constructor's."""
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name](**options)
