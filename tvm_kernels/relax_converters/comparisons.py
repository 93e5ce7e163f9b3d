"""Operators that compare floats, with NaN and infinity as ONNX has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, te
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.relax_converters.converter import CONVERTERS, Converter, converter


def _from_left(combine: Callable[[Any, Any], Any]) -> Converter:
    """Combine two operands at a time: TVM's own, of one or more than two, starts at the largest finite number."""

    def convert(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        made = inputs[0]
        for other in inputs[1:]:
            made = builder.normalize(combine(made, other))
        return made

    return convert


converter("", "Max")(_from_left(relax.op.maximum))
converter("", "Min")(_from_left(relax.op.minimum))


@converter("", "Sign")
def sign(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """-1, 0 or 1, and NaN of NaN."""
    x = inputs[0]
    signs = relax.op.sign(x)
    return relax.op.where(relax.op.isnan(x), x, signs) if "float" in str(x.ty.dtype) else signs


@converter("", "ThresholdedRelu")
def thresholded_relu(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """x where it is above alpha, else 0, also of NaN; TVM's own multiplies by 0, which is NaN of infinity."""
    x = inputs[0]
    zero, alpha = (relax.const(value, str(x.ty.dtype)) for value in (0.0, float(attributes.get("alpha", 1.0))))
    return relax.op.where(relax.op.greater(x, alpha), x, zero)


def _axes_of_reduction(inputs: Sequence[Any], attributes: dict[str, Any]) -> list[int]:
    """The axes of a reduction, ascending; none where it is the identity."""
    rank = len(inputs[0].ty.shape)
    axes = attributes.get("axes")
    if len(inputs) > 1 and inputs[1] is not None:
        axes = inputs[1].value.numpy().reshape(-1)
    if axes is None or not len(axes):
        axes = [] if attributes.get("noop_with_empty_axes", 0) else range(rank)
    return sorted(int(axis) % rank for axis in axes)


def _extreme(name: str, combine: Callable[[Any, Any], Any], first: float) -> Converter:
    """A reduction that starts at infinity: TVM's own starts at the largest finite number, which masked rows are not."""

    def convert(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        x, truth = inputs[0], str(inputs[0].ty.dtype) == "bool"
        if truth:
            x = builder.emit(relax.op.astype(x, "uint8"))
        dtype, rank = str(x.ty.dtype), len(x.ty.shape)
        over = _axes_of_reduction(inputs, attributes)
        if not over and rank:
            return inputs[0]
        identity = first if "float" in dtype else _limit(dtype, first)
        reduce = te.comm_reducer(combine, lambda kind: tvm.tirx.const(identity, kind), name=name)

        def compute(x: Any) -> Any:
            spans = {axis: te.reduce_axis((0, x.shape[axis]), f"k{axis}") for axis in over}
            keep = bool(attributes.get("keepdims", 1))
            shape = [1 if i in spans else size for i, size in enumerate(x.shape) if keep or i not in spans]

            def element(*at: Any) -> Any:
                places = iter(at)
                index = []
                for axis in range(rank):
                    place = next(places) if keep or axis not in spans else None
                    index.append(spans.get(axis, place))
                return reduce(x(*index), axis=list(spans.values()))

            return te.compute(shape, element, name=name)

        made = builder.call_te(compute, x, primfunc_name_hint=name)
        return relax.op.astype(builder.emit(made), "bool") if truth else made

    return convert


def _limit(dtype: str, sign: float) -> int:
    info = np.iinfo(dtype)
    return int(info.max if sign > 0 else info.min)


converter("", "ReduceMax")(_extreme("reduce_max", T.max, -np.inf))
converter("", "ReduceMin")(_extreme("reduce_min", T.min, np.inf))


@converter("", "ReduceLogSumExp")
def reduce_log_sum_exp(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """log sum exp x, relative to the largest x if that is finite; else infinite, where TVM's own is NaN."""
    x, over = inputs[0], _axes_of_reduction(inputs, attributes)
    if not over and len(x.ty.shape):
        return x
    largest = builder.emit(CONVERTERS["", "ReduceMax"](builder, inputs, {**attributes, "keepdims": 1}))
    zero = relax.const(0, str(x.ty.dtype))
    shift = builder.emit(relax.op.where(relax.op.isinf(largest), zero, largest))
    total = relax.op.sum(relax.op.exp(relax.op.subtract(x, shift)), over, True)
    result = builder.emit(relax.op.add(relax.op.log(total), shift))
    return result if attributes.get("keepdims", 1) else relax.op.squeeze(result, over)


def _index_of(name: str, first: float) -> Converter:
    """The index of the largest or smallest element, or of NaN: TVM's own is -1 where all are infinite."""

    def convert(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        x = inputs[0]
        dtype, rank = str(x.ty.dtype), len(x.ty.shape)
        axis = int(attributes.get("axis", 0)) % rank
        keep, last = bool(attributes.get("keepdims", 1)), bool(attributes.get("select_last_index", 0))
        lowest = first if "float" in dtype else _limit(dtype, first)

        def better(a: Any, b: Any) -> tuple[Any, Any]:
            beats = a[1] > b[1] if first < 0 else a[1] < b[1]
            equal = a[1] == b[1]
            if "float" in dtype:
                nan, other = (tvm.tirx.isnan(value) for value in (a[1], b[1]))
                beats = tvm.tirx.Or(beats, tvm.tirx.And(nan, tvm.tirx.Not(other)))
                equal = tvm.tirx.Or(equal, tvm.tirx.And(nan, other))
            earlier = a[0] > b[0] if last else a[0] < b[0]
            takes = tvm.tirx.Or(beats, tvm.tirx.And(equal, earlier))
            return tvm.tirx.Select(takes, a[0], b[0]), tvm.tirx.Select(takes, a[1], b[1])

        def none(index_dtype: str, kind: str) -> tuple[Any, Any]:
            return tvm.tirx.const(0, index_dtype), tvm.tirx.const(lowest, kind)

        reduce = te.comm_reducer(better, none, name=name)

        def compute(x: Any) -> Any:
            span = te.reduce_axis((0, x.shape[axis]), "k")
            shape = [1 if i == axis else size for i, size in enumerate(x.shape) if keep or i != axis]

            def element(*at: Any) -> Any:
                index = [*at[:axis], span.var, *at[axis + keep :]]
                return reduce((span.var.astype("int64"), x(*index)), axis=span)

            return te.compute(shape, element, name=name)[0]

        return builder.call_te(compute, x, primfunc_name_hint=name)

    return convert


converter("", "ArgMax")(_index_of("argmax", -np.inf))
converter("", "ArgMin")(_index_of("argmin", np.inf))
