"""Shapes that ONNX states in words and its shape inference does not check, operator by operator. To add one, a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from subbyte.errors import ModelError

Shapes = Sequence[tuple[int, ...] | None]  # of the inputs; None for one that is left out


def check_shapes(op: str, label: str, shapes: Shapes) -> None:
    """Raises ModelError for a node whose inputs do not fit each other, by what its operator's text says."""
    wrong = CHECKS[op](shapes) if op in CHECKS else ""
    if wrong:
        raise ModelError(f"node '{label}' ({op}) does not fit its inputs: {wrong}; export it again")


def _clip(shapes: Shapes) -> str:
    for name, shape in zip(("lower", "upper"), shapes[1:], strict=False):
        if shape is not None and any(size != 1 for size in shape):
            return f"its {name} bound has shape {list(shape)}, expected a scalar"
    return ""


def _scatter(shapes: Shapes) -> str:
    data, indices, updates = (*shapes, None, None)[:3]
    if not data or not indices or updates is None:
        return ""
    expected = (*indices[:-1], *data[indices[-1] :])
    return "" if updates == expected else f"its updates have shape {list(updates)}, expected {list(expected)}"


CHECKS: Mapping[str, Callable[[Shapes], str]] = {"Clip": _clip, "ScatterND": _scatter}
