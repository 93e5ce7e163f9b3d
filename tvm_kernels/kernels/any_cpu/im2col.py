"""The left operand of a product as rows: a matrix read in place, or a convolution's patches gathered into workspace.

A convolution is a product of patches, one for each output pixel, with the weights (im2col). A block of patches is
copied into workspace once and then multiplied with all columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.operators import Conv2d, MatMul


@dataclass(frozen=True)
class Matrices:
    """A product's geometry as `groups` matrix products [rows, depth] x [depth, columns]; depth in stored elements."""

    rows: int
    depth: int
    columns: int  # of one group
    groups: int
    gathered: bool  # False: the stored tensor is the matrix


def matrices_of(geometry: MatMul | Conv2d, elements: int | None = None) -> Matrices:
    """The matrix products of `geometry`; `elements`: stored for each pixel or row, if not one for each channel."""
    conv = geometry.as_conv()
    depth = conv.taps * ((elements or conv.channels) // conv.groups)
    return Matrices(conv.pixels, depth, conv.out_channels // conv.groups, conv.groups, not conv.is_pointwise)


def corner(conv: Conv2d, pixel: Any) -> tuple[Any, Any, Any]:
    """Emit the image of an output pixel, and the first row and column of its window (negative in the padding)."""
    out_row = T.bind(pixel // conv.out_width)
    left = T.bind((pixel % conv.out_width) * conv.stride[1] - conv.padding[1])
    top = T.bind((out_row % conv.out_height) * conv.stride[0] - conv.padding[0])
    image = T.bind(out_row // conv.out_height)
    return image, top, left


def gather(
    conv: Conv2d,
    elements: int,
    load: Callable[[Any, Any], Any],
    target: Any,
    first: Any,
    count: Any,
    group: Any,
    pad: Callable[[Any], Any],
    linear: bool = True,
) -> None:
    """Emit the copy of the patches of output pixels first .. first + count - 1 of a group to `target` [count * depth].

    A pixel has `elements` elements in all groups; load(pixel, element) is one of them, pad(element) its padded value.
    `linear`: load depends only on pixel * elements + element, so that neighbouring pixels can be copied at once.
    """
    take = elements // conv.groups
    run = conv.kernel[1] * take  # a kernel row of a patch
    depth = conv.kernel[0] * run

    with T.serial(0, count) as i:
        pixel = T.bind(first + i)
        ox = T.bind(pixel % conv.out_width)
        out_row = T.bind(pixel // conv.out_width)
        oy = T.bind(out_row % conv.out_height)
        image = T.bind(out_row // conv.out_height)
        left = T.bind(ox * conv.stride[1] - conv.padding[1])
        with T.serial(0, conv.kernel[0]) as ky:
            iy = T.bind(oy * conv.stride[0] - conv.padding[0] + ky * conv.dilation[0])
            row = T.bind((image * conv.height + iy) * conv.width)
            start = T.bind(i * depth + ky * run)
            row_inside = T.And(iy >= 0, iy < conv.height)

            def copy_pixels(row: Any = row, start: Any = start, row_inside: Any = row_inside) -> None:
                with T.serial(0, conv.kernel[1]) as kx:
                    ix = T.bind(left + kx * conv.dilation[1])
                    with T.If(T.And(row_inside, T.And(ix >= 0, ix < conv.width))):
                        with T.Then(), T.serial(0, take) as c:
                            T.buffer_store(target, load(row + ix, group * take + c), [start + kx * take + c])
                        with T.Else(), T.serial(0, take) as c:
                            T.buffer_store(target, pad(group * take + c), [start + kx * take + c])

            def copy_row(row: Any = row, start: Any = start) -> None:
                with T.serial(0, run) as j:
                    T.buffer_store(target, load(row + left, j), [start + j])

            if linear and conv.groups == 1 and conv.dilation[1] == 1:
                with T.If(T.And(row_inside, T.And(left >= 0, left + conv.kernel[1] <= conv.width))):
                    with T.Then():
                        copy_row()
                    with T.Else():
                        copy_pixels()
            else:
                copy_pixels()
