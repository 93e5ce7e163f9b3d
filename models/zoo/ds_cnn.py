"""DS-CNN, the depthwise separable network for keyword spotting on microcontrollers.

Hello Edge: Keyword Spotting on Microcontrollers (Zhang et al., 2017); the size of MLPerf Tiny (Banbury et al., 2021).
"""

from __future__ import annotations

from torch import nn

from subbyte.models.zoo.registry import Size, check_counts, register_model


def depthwise_separable(width: int) -> list[nn.Module]:
    """Depthwise 3x3, norm, ReLU, pointwise 1x1, norm, ReLU."""
    return [
        nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


@register_model("ds_cnn", summary="depthwise separable network for keyword spotting, 49x10 spectrograms", size=(49, 10))
def ds_cnn(*, classes: int, channels: int, size: Size, width: int = 64, blocks: int = 4) -> nn.Module:
    """A convolution of stride 2, `blocks` depthwise separable blocks of `width` channels, global average, Linear.

    The first kernel is 10x4 for spectrograms (at least twice as high as wide) and 3x3 for other images.
    """
    check_counts("ds_cnn", width=width, blocks=blocks)
    kernel, padding = ((10, 4), (5, 1)) if size[0] >= 2 * size[1] else ((3, 3), (1, 1))
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, kernel, 2, padding, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    for _ in range(blocks):
        layers += depthwise_separable(width)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
