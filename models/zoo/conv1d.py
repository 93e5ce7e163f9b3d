"""A residual 1-D convolution for series: classes or values of a whole series, or of each of its positions.

Time Series Classification from Scratch with Deep Neural Networks (Wang et al., 2017), with one width for all blocks.
"""

from __future__ import annotations

from torch import Tensor, nn

from subbyte.models.zoo.registry import check_counts, register_model


class Block(nn.Module):
    """Two convolutions of 3 positions with a shortcut around both: act(norm(conv(act(norm(conv(x))))) + x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm1d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(width)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        out: Tensor = self.act2(self.norm2(self.conv2(y)) + x)
        return out


@register_model("conv1d", summary="residual 1-D convolutions over a series, 32 wide", size=(64,), takes="series")
def conv1d(
    *, shape: tuple[int, int], outputs: int, width: int = 32, depth: int = 3, per_position: bool = False
) -> nn.Module:
    """A stem of 7 positions, `depth` blocks of `width` channels, global average, Linear: [N, C, L] -> [N, outputs].

    With `per_position` a convolution of 1 position in place of average and Linear: [N, C, L] -> [N, outputs, L].
    """
    check_counts("conv1d", width=width, depth=depth)
    stem = [nn.Conv1d(shape[0], width, 7, padding=3, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    body = [*stem, *(Block(width) for _ in range(depth))]
    if per_position:
        return nn.Sequential(*body, nn.Conv1d(width, outputs, 1))
    return nn.Sequential(*body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, outputs))
