"""Operators of ONNX that read indices: which input has them, and what their range is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from subbyte.dialect.function import Shape
from subbyte.dialect.macs import Shapes


@dataclass(frozen=True)
class Indices:
    """The index input of an operator, the size of the axis of each index, and whether indices may be negative.

    `sizes(shapes)`: one size for all indices, or one for each element of their last axis.
    """

    input: int
    sizes: Callable[[Shapes], Shape]
    negative: bool = True


def _along_axis(shapes: Shapes) -> Shape:
    return (shapes.of(0)[int(shapes.attributes.get("axis", 0))],)


def _coordinates(shapes: Shapes) -> Shape:
    first = int(shapes.attributes.get("batch_dims", 0))
    return shapes.of(0)[first : first + shapes.of(1)[-1]]


def _whole_output(shapes: Shapes) -> Shape:
    return (math.prod(shapes.output),)


def _images(shapes: Shapes) -> Shape:
    return shapes.of(0)[:1]


INDEXED = {
    "Gather": Indices(1, _along_axis),
    "GatherElements": Indices(1, _along_axis),
    "GatherND": Indices(1, _coordinates),
    "ScatterElements": Indices(1, _along_axis),
    "ScatterND": Indices(1, _coordinates),
    "MaxUnpool": Indices(1, _whole_output, negative=False),
    "RoiAlign": Indices(2, _images, negative=False),
}
