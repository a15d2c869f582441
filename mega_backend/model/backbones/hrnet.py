"""HRNet (Sun et al. 2019) in the pose-HRNet parameter names, with the head of the published mesh models.

Four branches at 1/4, 1/8, 1/16 and 1/32 of the crop exchange features throughout. Instead of a heat-map layer, strided
convolutions (``downsample_stage_{1,2,3}``) bring the three finer branches to the coarsest grid, where all are
concatenated: HRNet-W48 turns a 224×224 crop into (48 + 96 + 192 + 384) = 720×7×7.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .resnet import Bottleneck, convolution


def _unit(channels_in: int, channels_out: int, stride: int = 1, activation: bool = True) -> nn.Sequential:
    """3×3 convolution and normalisation, ReLU behind them if asked for."""
    layers = [convolution(channels_in, channels_out, 3, stride), nn.BatchNorm2d(channels_out)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if activation else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = convolution(channels, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) → the same shape."""
        y = self.bn1(self.conv1(x)).relu_()
        return self.bn2(self.conv2(y)).add_(x).relu_()


class Exchange(nn.Module):
    """One module of a stage: blocks on every branch, then every branch receives the sum of all, resampled to it."""

    def __init__(self, channels: Sequence[int], blocks: int):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(count) for _ in range(blocks))) for count in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._resample(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )

    @staticmethod
    def _resample(channels: Sequence[int], source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            return nn.Sequential(
                convolution(channels[source], channels[target], 1),
                nn.BatchNorm2d(channels[target]),
                nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
            )
        steps = target - source
        return nn.Sequential(
            *(_unit(channels[source], channels[source], 2) for _ in range(steps - 1)),
            _unit(channels[source], channels[target], 2, activation=False),
        )

    def forward(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """One feature map per branch, in and out."""
        inputs = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        outputs = []
        for row in self.fuse_layers:
            parts = [layer(x) for layer, x in zip(row, inputs, strict=True)]
            outputs.append(sum(parts[1:], start=parts[0]).relu_())
        return outputs


class HRNet(nn.Module):
    """The feature extractor; the defaults are HRNet-W48.

    width : channels of the finest branch, doubled from branch to branch
    stem : channels of the two strided convolutions at the entrance
    modules : exchange modules in stages 2, 3 and 4
    blocks : residual blocks of a branch between two exchanges, and of the first stage
    """

    input_size = 224

    def __init__(self, width: int = 48, stem: int = 64, modules: Sequence[int] = (1, 4, 3), blocks: int = 4):
        super().__init__()
        widths = [width * 2**branch for branch in range(4)]
        self.channels = sum(widths)
        self.conv1 = convolution(3, stem, 3, 2)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = convolution(stem, stem, 3, 2)
        self.bn2 = nn.BatchNorm2d(stem)
        first = Bottleneck.expansion * stem
        self.layer1 = nn.Sequential(Bottleneck(stem, stem), *(Bottleneck(first, stem) for _ in range(blocks - 1)))
        self.transition1 = nn.ModuleList([_unit(first, widths[0]), nn.Sequential(_unit(first, widths[1], 2))])
        self.stage2 = nn.Sequential(*(Exchange(widths[:2], blocks) for _ in range(modules[0])))
        self.transition2 = self._new_branch(widths, 2)
        self.stage3 = nn.Sequential(*(Exchange(widths[:3], blocks) for _ in range(modules[1])))
        self.transition3 = self._new_branch(widths, 3)
        self.stage4 = nn.Sequential(*(Exchange(widths, blocks) for _ in range(modules[2])))
        self.downsample_stage_1 = self._downsample(widths[0], 3)
        self.downsample_stage_2 = self._downsample(widths[1], 2)
        self.downsample_stage_3 = self._downsample(widths[2], 1)
        # Channels last in memory is what the convolutions of CPUs and GPUs prefer.
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def _new_branch(widths: Sequence[int], branch: int) -> nn.ModuleList:
        """Identities for the branches there are, and the step from the coarsest of them to the new one."""
        step = nn.Sequential(_unit(widths[branch - 1], widths[branch], 2))
        return nn.ModuleList([*(nn.Identity() for _ in range(branch)), step])

    @staticmethod
    def _downsample(channels: int, steps: int) -> nn.Sequential:
        return nn.Sequential(*(layer for _ in range(steps) for layer in _unit(channels, channels, 2)))

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Normalised RGB crops (B, 3, H, W), sides a multiple of 32 → (B, 15·width, H/32, W/32)."""
        x = crops.contiguous(memory_format=torch.channels_last)
        x = self.bn1(self.conv1(x)).relu_()
        x = self.layer1(self.bn2(self.conv2(x)).relu_())
        branches = self.stage2([transition(x) for transition in self.transition1])
        branches = self.stage3([*branches, self.transition2[2](branches[-1])])
        branches = self.stage4([*branches, self.transition3[3](branches[-1])])
        fine = (self.downsample_stage_1, self.downsample_stage_2, self.downsample_stage_3)
        maps = [down(branch) for down, branch in zip(fine, branches, strict=False)]
        return torch.cat([*maps, branches[3]], dim=1).contiguous()
