"""Operators that read or write by indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, te
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.relax_converters.converter import converter


def _rank(tensor: Any) -> int:
    return len(tensor.shape)


@converter("", "Gather")
def gather(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y[a.., i.., b..] = x[a.., indices[i..], b..], with `axis` leading axes a."""

    def compute(x: Any, indices: Any) -> Any:
        axis = int(attributes.get("axis", 0)) % _rank(x)
        last = axis + _rank(indices)
        shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]
        return te.compute(shape, lambda *at: x(*at[:axis], indices(*at[axis:last]), *at[last:]), name="gather")

    return builder.call_te(compute, *inputs, primfunc_name_hint="gather")


@converter("", "GatherElements")
def gather_elements(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y[a.., i, b..] = x[a.., indices[a.., i, b..], b..]."""

    def compute(x: Any, indices: Any) -> Any:
        axis = int(attributes.get("axis", 0)) % _rank(x)
        return te.compute(indices.shape, lambda *at: x(*at[:axis], indices(*at), *at[axis + 1 :]), name="elements")

    return builder.call_te(compute, *inputs, primfunc_name_hint="gather_elements")


@converter("", "GatherND")
def gather_nd(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y[a.., i.., b..] = x[a.., indices[a.., i.., 0], indices[a.., i.., 1], .., b..]."""

    def compute(x: Any, indices: Any) -> Any:
        batch, last, coordinates = int(attributes.get("batch_dims", 0)), _rank(indices) - 1, int(indices.shape[-1])
        shape = [*indices.shape[:-1], *x.shape[batch + coordinates :]]

        def element(*at: Any) -> Any:
            return x(*at[:batch], *(indices(*at[:last], axis) for axis in range(coordinates)), *at[last:])

        return te.compute(shape, element, name="gather_nd")

    return builder.call_te(compute, *inputs, primfunc_name_hint="gather_nd")


@converter("", "OneHot")
def one_hot(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """On where the index is the position along `axis`; -1 is the last one. ONNX: "Any entries in the 'indices' input
    tensor with values outside the range [-depth, depth-1] will result in one-hot representation with all 'off_value'
    values". A float that is no integer is off everywhere, too, as in ONNX's evaluator and onnxruntime, although ONNX
    states that it is "casted to int64 before use"."""
    depth = int(inputs[1].value.numpy().reshape(-1)[0])

    def compute(indices: Any, values: Any) -> Any:
        axis = int(attributes.get("axis", -1)) % (_rank(indices) + 1)

        def element(*at: Any) -> Any:
            index = indices(*at[:axis], *at[axis + 1 :])
            index = index if "float" in str(index.ty) else index.astype("int64")
            index = tvm.tirx.Select(index < 0, index + tvm.tirx.const(depth, str(index.ty)), index)
            return tvm.tirx.Select(index == at[axis].astype(str(index.ty)), values(1), values(0))

        return te.compute([*indices.shape[:axis], depth, *indices.shape[axis:]], element, name="one_hot")

    return builder.call_te(compute, inputs[0], inputs[2], primfunc_name_hint="one_hot")


REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": T.max,
    "min": T.min,
}


def _axes(places: Any) -> list[Any]:
    """The variables of a grid; for one axis TVM returns the variable itself."""
    return [places] if isinstance(places, tvm.tirx.Var) else list(places)


def _scatter(
    builder: Any,
    inputs: Sequence[Any],
    attributes: dict[str, Any],
    target: Callable[[Any, Sequence[Any]], Sequence[Any]],
) -> Any:
    """The data, then every update in order, written to `target(indices, index of the update)`."""
    shapes = [[int(size) for size in tensor.ty.shape] for tensor in inputs]
    dtypes = [str(tensor.ty.dtype) for tensor in inputs]
    combine = REDUCTIONS[attributes.get("reduction", b"none").decode()]
    with IRBuilder() as tir, T.prim_func(s_tir=True):
        T.func_name("scatter")
        x, indices, updates = (
            T.arg(name, T.buffer(tuple(shape), dtype)) for name, shape, dtype in zip("xiu", shapes, dtypes, strict=True)
        )
        y = T.arg("y", T.buffer(tuple(shapes[0]), dtypes[0]))
        with T.grid(*shapes[0]) as places:
            at = _axes(places)
            T.buffer_store(y, x[tuple(at)], at)
        with T.grid(*shapes[2]) as places:
            at = _axes(places)
            place = target(indices, at)
            T.buffer_store(y, combine(y[tuple(place)], updates[tuple(at)]), place)
    function = builder.add_func(tir.get(), "scatter")
    return relax.call_tir(function, relax.Tuple(list(inputs)), inputs[0].ty)


@converter("", "ScatterElements")
def scatter_elements(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y = x; y[a.., indices[a.., i, b..], b..] = updates[a.., i, b..]."""
    axis = int(attributes.get("axis", 0)) % len(inputs[0].ty.shape)

    def target(indices: Any, at: Sequence[Any]) -> list[Any]:
        return [*at[:axis], indices[tuple(at)], *at[axis + 1 :]]

    return _scatter(builder, inputs, attributes, target)


@converter("", "ScatterND")
def scatter_nd(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """y = x; y[indices[a.., 0], indices[a.., 1], .., b..] = updates[a.., b..]."""
    *batch, coordinates = (int(size) for size in inputs[1].ty.shape)

    def target(indices: Any, at: Sequence[Any]) -> list[Any]:
        first = at[: len(batch)]
        places = [(*first, axis) for axis in range(coordinates)]
        return [*(indices[place] for place in places), *at[len(batch) :]]

    return _scatter(builder, inputs, attributes, target)


@converter("", "MaxUnpool")
def max_unpool(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Zeros, and x at its indices, which are offsets into the flat output."""
    shape = [int(size) for size in attributes["shape"]]
    flat = [builder.emit(relax.op.reshape(tensor, [-1])) for tensor in (inputs[1], inputs[0])]
    zeros = builder.emit(relax.op.zeros([int(np.prod(shape))], str(inputs[0].ty.dtype)))

    def target(indices: Any, at: Sequence[Any]) -> list[Any]:
        return [indices[tuple(at)]]

    return relax.op.reshape(builder.emit(_scatter(builder, [zeros, *flat], {}, target)), shape)
