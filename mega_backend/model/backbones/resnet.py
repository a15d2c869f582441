"""ResNet (He et al. 2016) without pooling and head, as the published models number its children.

Children 0 and 1 are the stem's convolution and normalisation, 4 to 7 the four stages; strides sit on the 3×3
convolutions. ResNet-50 turns a 224×224 crop into 2048×7×7.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def convolution(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the picture's size (over its stride)."""
    return nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions with four times as many channels out as within, and a shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int = 1):
        super().__init__()
        channels_out = self.expansion * channels
        self.conv1 = convolution(channels_in, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = convolution(channels, channels_out, 1)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                convolution(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) → (B, 4·channels, H/stride, W/stride)."""
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        y = self.bn3(self.conv3(y))
        return y.add_(x if self.downsample is None else self.downsample(x)).relu_()


class ResNet(nn.Sequential):
    """A bottleneck ResNet for square crops of `input_size` pixels; the defaults are ResNet-50."""

    def __init__(self, blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64, input_size: int = 224):
        stages, channels = [], width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            stages.append(nn.Sequential())
            for block in range(count):
                stages[-1].append(Bottleneck(channels, planes, 2 if stage and not block else 1))
                channels = Bottleneck.expansion * planes
        super().__init__(
            convolution(3, width, 7, 2),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
            *stages,
        )
        self.channels, self.input_size = channels, input_size
        # Channels last in memory is what the convolutions of CPUs and GPUs prefer.
        self.to(memory_format=torch.channels_last)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Normalised RGB crops (B, 3, H, W) → (B, channels, H/32, W/32)."""
        return super().forward(crops.contiguous(memory_format=torch.channels_last)).contiguous()
