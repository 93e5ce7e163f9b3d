"""A small U-Net for segmentation: logits of each pixel.

U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015), with padded convolutions,
batch norms, and upsampling by the nearest pixel in place of transposed convolutions, which have no quantized form
(Deconvolution and Checkerboard Artifacts, Odena et al., 2016).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.zoo.registry import Size, check_counts, register_model


def two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Twice: 3x3, norm, ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Down by maxima over 2x2, up by nearest pixels; what was seen at a size joins the way up at that size."""

    def __init__(self, channels: int, widths: list[int], classes: int) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.stem = two_convolutions(channels, widths[0])
        self.down = nn.ModuleList(two_convolutions(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(two_convolutions(fine + coarse, fine) for fine, coarse in reversed(pairs))
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.stem(x)]
        for down in self.down:
            seen.append(down(self.pool(seen[-1])))
        x = seen.pop()
        for up in self.up:
            x = up(torch.cat([seen.pop(), self.upsample(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


@register_model("unet", summary="small U-Net, logits of each pixel: [N, classes, H, W]", size=(32, 32))
def unet(*, classes: int, channels: int, size: Size, width: int = 16, depth: int = 2) -> nn.Module:
    """`depth` times half the size and twice the channels, from `width` on, and back: logits [N, classes, H, W].

    Height and width must divide by 2 to the power of `depth`.
    """
    check_counts("unet", width=width, depth=depth)
    if size[0] % 2**depth or size[1] % 2**depth:
        raise UsageError(
            f"images of {size[0]}x{size[1]} cannot be halved {depth} times; choose a smaller `depth`, or pad the "
            f"images to a multiple of {2**depth}."
        )
    return UNet(channels, [width * 2**level for level in range(depth + 1)], classes)
