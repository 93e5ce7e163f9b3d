"""Shapes that ONNX defines in prose and its shape inference does not check, by operator. To add one, add a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from subbyte.errors import ModelError

Shapes = Sequence[tuple[int, ...] | None]  # of the inputs; None for one that is left out
Attributes = Mapping[str, Any]


def check_shapes(op: str, label: str, shapes: Shapes, attributes: Attributes) -> None:
    """Raises ModelError for a node whose inputs do not fit each other, by what its operator's text says."""
    wrong = CHECKS[op](shapes, attributes) if op in CHECKS else ""
    if wrong:
        raise ModelError(f"node '{label}' ({op}) does not fit its inputs: {wrong}; export it again")


def _clip(shapes: Shapes, attributes: Attributes) -> str:
    for name, shape in zip(("lower", "upper"), shapes[1:], strict=False):
        if shape is not None and any(size != 1 for size in shape):
            return f"its {name} bound has shape {list(shape)}, expected a scalar"
    return ""


def _scatter_nd(shapes: Shapes, attributes: Attributes) -> str:
    data, indices, updates = (*shapes, None, None)[:3]
    if not data or not indices or updates is None:
        return ""
    expected = (*indices[:-1], *data[indices[-1] :])
    return "" if updates == expected else f"its updates have shape {list(updates)}, expected {list(expected)}"


def _elements(shapes: Shapes, attributes: Attributes) -> str:
    """Indices have the axes of the data, and along all but the indexed axis at most its size."""
    data, indices, updates = (*shapes, None, None)[:3]
    if data is None or indices is None:
        return ""
    if len(indices) != len(data):
        return f"its indices have {len(indices)} axes, expected those of its data, {len(data)}"
    if updates is not None and updates != indices:
        return f"its updates have shape {list(updates)}, expected that of its indices, {list(indices)}"
    chosen = int(attributes.get("axis", 0)) % max(len(data), 1)
    for axis, (size, most) in enumerate(zip(indices, data, strict=True)):
        if axis != chosen and size > most:
            return f"its indices of shape {list(indices)} exceed its data of shape {list(data)} along axis {axis}"
    return ""


def _gather_nd(shapes: Shapes, attributes: Attributes) -> str:
    data, indices = (*shapes, None)[:2]
    batch = int(attributes.get("batch_dims", 0))
    if not data or not indices:
        return ""
    if batch >= min(len(data), len(indices)):
        return f"its batch_dims is {batch}, expected less than the axes of its data and of its indices"
    if data[:batch] != indices[:batch]:
        return f"its first {batch} axes are {list(data[:batch])} of its data, {list(indices[:batch])} of its indices"
    return ""


def _max_unpool(shapes: Shapes, attributes: Attributes) -> str:
    x, indices = (*shapes, None)[:2]
    return "" if x == indices else f"its indices have shape {list(indices or ())}, expected {list(x or ())}"


def _windows(shapes: Shapes, attributes: Attributes) -> str:
    """A window of padding alone has no maximum and no average; with `count_include_pad` its average is 0."""
    x, kernel = shapes[0], attributes.get("kernel_shape")
    if not x or not kernel or len(kernel) != len(x) - 2 or attributes.get("count_include_pad"):
        return ""
    rank = len(kernel)
    pads, strides, dilations = (
        attributes.get(name) or [default] * count
        for name, default, count in (("pads", 0, 2 * rank), ("strides", 1, rank), ("dilations", 1, rank))
    )
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or not len(pads) == 2 * rank == 2 * len(strides):
        return ""
    for axis, size in enumerate(x[2:]):
        reach, padded = (kernel[axis] - 1) * dilations[axis], size + pads[axis] + pads[axis + rank]
        starts = range(-pads[axis], padded - pads[axis] - reach, max(strides[axis], 1))
        for start in (place for place in starts if not 0 <= place < size):
            if not any(0 <= place < size for place in range(start, start + reach + 1, max(dilations[axis], 1))):
                return f"its pads {list(pads)} give a window of padding alone, expected pads smaller than the window"
    return ""


CHECKS: Mapping[str, Callable[[Shapes, Attributes], str]] = {
    "AveragePool": _windows,
    "Clip": _clip,
    "GatherElements": _elements,
    "GatherND": _gather_nd,
    "MaxPool": _windows,
    "MaxUnpool": _max_unpool,
    "ScatterElements": _elements,
    "ScatterND": _scatter_nd,
}
