"""The shapes of products and windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from subbyte.tvm_kernels.operators.operands import Array


class Geometry(ABC):
    """Which elements of two operands are multiplied and summed."""

    @abstractmethod
    def by_group(self, left: Array, right: Array, pad: float) -> tuple[Array, Array]:
        """The operands as [groups, rows, depth] and [groups, columns, depth] float64; padding has the value `pad`."""

    @abstractmethod
    def output(self, sums: Array) -> Array:
        """[groups, rows, columns] in the shape of the output."""

    @abstractmethod
    def as_conv(self) -> Conv2d:
        """The same product as a convolution: rows of a matrix are the pixels of an image of height 1."""

    def sums(self, left: Array, right: Array, pad: float = 0) -> Array:
        """The exact sums of products of integers, int32 in the shape of the output."""
        rows, columns = self.by_group(left, right, pad)
        return self.output(np.matmul(rows, columns.swapaxes(1, 2))).astype(np.int32)


@dataclass(frozen=True)
class MatMul(Geometry):
    """[rows, depth] x [columns, depth]^T -> [rows, columns]; leading axes are flattened into rows.

    Of two run-time tensors there are `batch` such products; if not `transposed`, the right one is [depth, columns].
    """

    rows: int
    depth: int
    columns: int
    batch: int = 1
    transposed: bool = True

    @property
    def macs(self) -> int:
        return self.batch * self.rows * self.depth * self.columns

    def by_group(self, left: Array, right: Array, pad: float) -> tuple[Array, Array]:
        if self.transposed:
            columns = right.reshape(self.batch, self.columns, self.depth)
        else:
            columns = right.reshape(self.batch, self.depth, self.columns).swapaxes(1, 2)
        return left.reshape(self.batch, self.rows, self.depth).astype(np.float64), columns.astype(np.float64)

    def output(self, sums: Array) -> Array:
        return np.asarray(sums if self.batch > 1 else sums[0])

    def as_conv(self) -> Conv2d:
        return Conv2d(1, 1, self.rows, self.depth, self.columns, (1, 1))


@dataclass(frozen=True)
class Conv2d(Geometry):
    """Convolution, channels last; a Conv1d has height 1.

    Weights are [out_channels, kernel_h, kernel_w, channels / groups].
    """

    batch: int
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_height(self) -> int:
        reach = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[2] - reach) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.padded_width - reach) // self.stride[1] + 1

    @property
    def padded_width(self) -> int:
        return self.width + self.padding[1] + self.padding[3]

    @property
    def input_pixels(self) -> int:
        """Pixels of all images."""
        return self.batch * self.height * self.width

    @property
    def pixels(self) -> int:
        """Pixels of the output: rows of the product."""
        return self.batch * self.out_height * self.out_width

    @property
    def taps(self) -> int:
        """Pixels of a window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def depth(self) -> int:
        """Length of the reduction."""
        return self.taps * self.channels // self.groups

    @property
    def macs(self) -> int:
        return self.pixels * self.out_channels * self.depth

    @property
    def is_pointwise(self) -> bool:
        """Whether it is one matrix product of the pixels as they are stored."""
        return self.kernel == self.stride == (1, 1) and not any(self.padding) and self.groups == 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has one filter of its own."""
        return self.groups == self.channels == self.out_channels > 1

    def patches(self, a: Array, pad_value: float) -> Array:
        """im2col: [batch, height, width, channels] to [batch, out_h, out_w, kernel_h, kernel_w, channels]."""
        top, left, bottom, right = self.padding
        image = a.reshape(self.batch, self.height, self.width, self.channels)
        padded = np.pad(image, [(0, 0), (top, bottom), (left, right), (0, 0)], constant_values=pad_value)
        out = np.empty((self.batch, self.out_height, self.out_width, *self.kernel, self.channels), a.dtype)
        for y in range(self.kernel[0]):
            for x in range(self.kernel[1]):
                first = (y * self.dilation[0], x * self.dilation[1])
                rows = slice(first[0], first[0] + (self.out_height - 1) * self.stride[0] + 1, self.stride[0])
                columns = slice(first[1], first[1] + (self.out_width - 1) * self.stride[1] + 1, self.stride[1])
                out[:, :, :, y, x, :] = padded[:, rows, columns, :]
        return out

    def by_group(self, left: Array, right: Array, pad: float) -> tuple[Array, Array]:
        rows = self.pixels
        split = self.patches(left, pad).reshape(rows, *self.kernel, self.groups, self.channels // self.groups)
        patches = np.moveaxis(split, 3, 0).reshape(self.groups, rows, self.depth)
        columns = right.reshape(self.groups, self.out_channels // self.groups, self.depth)
        return patches.astype(np.float64), columns.astype(np.float64)

    def output(self, sums: Array) -> Array:
        flat = np.moveaxis(sums, 0, 1)
        return flat.reshape(self.batch, self.out_height, self.out_width, self.out_channels)

    def as_conv(self) -> Conv2d:
        return self
