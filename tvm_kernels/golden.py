"""Golden inputs and outputs of a model: what a reference engine says that the bundle must give."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper

from subbyte.errors import ModelError
from subbyte.exactness import PRODUCTS, RoundingTies, holds_integers, largest_of
from subbyte.onnx_file import Source
from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from subbyte.tvm_kernels import reference_engine
from subbyte.tvm_kernels.emit import Golden
from subbyte.tvm_kernels.golden_inputs import Given, index_ranges, random_inputs, read_inputs
from subbyte.tvm_kernels.plan import Plan

Array = npt.NDArray[Any]


def golden_tensors(model: Source, plan: Plan, given: Given | None = None, seed: int = 0) -> tuple[Golden, str]:
    """Inputs (given, or random from `seed`), the outputs, and what made those (see reference_engine.py).

    Raises UsageError for given inputs that do not fit, ModelError when no engine takes the inputs.
    """
    inputs = random_inputs(plan.inputs, seed, index_ranges(model)) if given is None else read_inputs(given, plan.inputs)
    feeds = {tensor.name: array for tensor, array in zip(plan.inputs, inputs, strict=True)}
    names = [tensor.name for tensor in plan.outputs]
    try:
        outputs, engine = reference_engine.run(model, names, feeds)
    except ModelError as error:
        raise ModelError(_refused(plan, inputs, given is None, error)) from error
    made = tuple(np.asarray(array, order="C") for array in outputs)
    for tensor, array in zip(plan.outputs, made, strict=True):
        if array.shape != tuple(tensor.shape) or str(array.dtype) != tensor.dtype:
            raise ModelError(
                f"output '{tensor.name}' of {engine} is {array.dtype} {list(array.shape)}; "
                f"the compiled model has {tensor.dtype} {list(tensor.shape)}"
            )
    loaded, named = reference_engine.loaded(model), dict(zip(names, made, strict=True))
    ties = _measured(loaded, feeds, named, seed)
    return Golden(tuple(inputs), made, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, ties), engine


# Float sums differ between engines by some 1e-7 of their terms. A model whose float constants and inputs are moved by a
# hundred times that crosses the ties that an engine may cross, and others: one run tells. Its smooth part stays below
# the tolerance of any float. What is computed in float16 differs by its digits.
MOVED_BY, MOVED_BY_IN_FLOAT16, MARGIN = 1e-5, 2.0**-10, 4.0
# What a moved constant of these moves is a value; of others, say of Resize, it may be a shape.
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "BatchNormalization", "LayerNormalization", "InstanceNormalization"}
_ARITHMETIC |= {"GroupNormalization", "QuantizeLinear", "DequantizeLinear", *PRODUCTS}


def _measured(
    model: onnx.ModelProto, feeds: dict[str, Array], outputs: dict[str, Array], seed: int
) -> tuple[float, ...]:
    """What ties, and rounding to float16, may move each output: as far as moves of all floats by MOVED_BY do.

    Of what is allowed for a float; for an integer that says where an inexact value stands, as far as it moved.
    """
    ties = RoundingTies(model)
    allowed, coarse, elsewhere = ties.allowances(outputs), ties.coarse_values, ties.indices
    floats = [name for name, output in outputs.items() if allowed[name] and output.dtype.kind == "f"]
    names = floats + [name for name in outputs if name in elsewhere]
    if not names:
        return tuple(allowed.values())
    rng = np.random.default_rng(seed)
    by = MOVED_BY_IN_FLOAT16 if coarse else MOVED_BY
    moved = {name: _moved(array, rng, by) for name, array in feeds.items()}
    try:
        found, _ = reference_engine.run(_moved_model(model, rng, by), names, moved)
    except ModelError:  # a constant that must be what it is
        return tuple(allowed.values())
    measured = {}
    for name, output in zip(names, found, strict=True):
        if output.shape == outputs[name].shape:
            apart = output != outputs[name]
            reach = float(np.abs(output[apart].astype(np.float64) - outputs[name][apart]).max(initial=0.0))
            if name in elsewhere:
                measured[name] = reach
            elif np.isfinite(reach):
                least = MOVED_BY_IN_FLOAT16 * largest_of(outputs[name]) if name in coarse else 0.0
                measured[name] = min(allowed[name], max(least, MARGIN * reach))
    return tuple({**allowed, **measured}.values())


def _moved(array: Array, rng: np.random.Generator, by: float) -> Array:
    if array.dtype.kind != "f":
        return array
    factor = 1 + by * (2.0 * rng.integers(0, 2, array.shape) - 1)
    return np.asarray(array * factor).astype(array.dtype)


def _moved_model(model: onnx.ModelProto, rng: np.random.Generator, by: float) -> onnx.ModelProto:
    """A copy whose float factors, scales and offsets are moved; integers that are stored as floats stay."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    read = {name for n in copy.graph.node if n.domain or n.op_type in _ARITHMETIC for name in n.input}
    for tensor in copy.graph.initializer:
        if tensor.name in read and not holds_integers(tensor):
            values = _moved(onnx.numpy_helper.to_array(tensor), rng, by)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return copy


def _refused(plan: Plan, inputs: list[Array], random: bool, reason: Exception) -> str:
    described = ", ".join(
        f"'{tensor.name}' {array.dtype} {list(array.shape)}"
        + (f" in {array.min()} .. {array.max()}" if array.size and array.dtype.kind != "f" else "")
        for tensor, array in zip(plan.inputs, inputs, strict=True)
    )
    do = "give inputs that it accepts with --golden-inputs FILE.npz (golden_inputs=)"
    kind = "random golden inputs" if random else "given golden inputs"
    return f"no reference could run the model on its {kind} {described}: {reason}. If they do not fit the model, {do}"
