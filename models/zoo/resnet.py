"""Residual networks: ResNet-8 as in MLPerf Tiny and ResNet-18, with a shortcut per block or per convolution.

Deep Residual Learning for Image Recognition (He et al., 2016); MLPerf Tiny Benchmark (Banbury et al., 2021).

`shortcut="block"` is the usual form: conv, norm, act, conv, norm, + shortcut, act. `shortcut="convolution"` puts a
shortcut around every 3x3 convolution, so that the real-valued signal survives the signs of a binary network
(Bi-Real Net, Liu et al., 2018; ReActNet, Liu et al., 2020). There a shortcut that halves the image is a maximum over
2x2, and one that doubles the channels is a second copy of them: no parameters, and exact in float32 on every
machine, where an average depends on the order of its sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.zoo.registry import Size, check_counts, register_model

Shortcut = Literal["block", "convolution"]
Activation = Literal["relu", "prelu"]
BINARY = {"binary": {"shortcut": "convolution", "activation": "prelu"}}


def activation_layer(kind: Activation, channels: int) -> nn.Module:
    """ReLU, or PReLU with one slope for each channel."""
    return nn.ReLU() if kind == "relu" else nn.PReLU(channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with one shortcut around both, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.act1 = activation_layer(activation, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act2 = activation_layer(activation, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        out: Tensor = self.act2(y)
        return out


class ShortcutConvolution(nn.Module):
    """act(norm(conv3x3(x)) + shortcut(x)): the unit of binary residual networks."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.copies = outputs // inputs
        self.act = activation_layer(activation, outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.pool(x)
        if self.copies > 1:
            shortcut = torch.cat([shortcut] * self.copies, dim=1)
        out: Tensor = self.act(self.norm(self.conv(x)) + shortcut)
        return out


class ResNet(nn.Module):
    """Stem, stages of blocks that halve the image and double the channels, global average, Linear."""

    def __init__(
        self,
        stem: Sequence[nn.Module],
        widths: Sequence[int],
        blocks: int,
        *,
        classes: int,
        shortcut: Shortcut,
        activation: Activation,
    ) -> None:
        super().__init__()
        if shortcut not in ("block", "convolution"):
            raise UsageError(f"shortcut must be 'block' or 'convolution', got {shortcut!r}.")
        if activation not in ("relu", "prelu"):
            raise UsageError(f"activation must be 'relu' or 'prelu', got {activation!r}.")
        self.stem = nn.Sequential(*stem)
        stages: list[nn.Module] = []
        inputs = widths[0]
        for number, outputs in enumerate(widths):
            layers: list[nn.Module] = []
            for index in range(blocks):
                stride = 2 if number > 0 and index == 0 else 1
                if shortcut == "block":
                    layers.append(BasicBlock(inputs, outputs, stride, activation))
                else:
                    layers.append(ShortcutConvolution(inputs, outputs, stride, activation))
                    layers.append(ShortcutConvolution(outputs, outputs, 1, activation))
                inputs = outputs
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        logits: Tensor = self.head(self.flatten(self.pool(x)))
        return logits


def _small_stem(channels: int, width: int, activation: Activation) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    return [convolution, nn.BatchNorm2d(width), activation_layer(activation, width)]


def _imagenet_stem(channels: int, width: int, activation: Activation) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
    return [convolution, nn.BatchNorm2d(width), activation_layer(activation, width), nn.MaxPool2d(3, 2, 1)]


@register_model("resnet8", summary="MLPerf Tiny ResNet-8, stages 16/32/64, images of 8x8 to 32x32", prefers=BINARY)
def resnet8(
    *,
    classes: int,
    channels: int,
    size: Size,
    width: int = 16,
    shortcut: Shortcut = "block",
    activation: Activation = "relu",
) -> nn.Module:
    """ResNet-8: a 3x3 stem of `width` channels and three stages of one block, `width` x 1, 2, 4."""
    check_counts("resnet8", width=width)
    stem = _small_stem(channels, width, activation)
    return ResNet(stem, (width, 2 * width, 4 * width), 1, classes=classes, shortcut=shortcut, activation=activation)


@register_model(
    "resnet18", summary="ResNet-18 for ImageNet's 224x224; smaller images too", prefers=BINARY, size=(224, 224)
)
def resnet18(
    *,
    classes: int,
    channels: int,
    size: Size,
    width: int = 64,
    shortcut: Shortcut = "block",
    activation: Activation = "relu",
) -> nn.Module:
    """ResNet-18: 7x7 stem with pooling (3x3 without pooling for images below 64), four stages of two blocks."""
    check_counts("resnet18", width=width)
    make_stem = _imagenet_stem if min(size) >= 64 else _small_stem
    widths = (width, 2 * width, 4 * width, 8 * width)
    stem = make_stem(channels, width, activation)
    return ResNet(stem, widths, 2, classes=classes, shortcut=shortcut, activation=activation)
