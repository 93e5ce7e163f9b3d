"""Golden inputs and outputs of a model: those that a reference engine computes, which the bundle must reproduce."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper

from subbyte.dialect.exactness import PRODUCTS, RoundingTies, holds_integers, largest_of
from subbyte.errors import ModelError
from subbyte.onnx_files.loader import Source
from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from subbyte.tvm_kernels import reference_engine
from subbyte.tvm_kernels.emit import Golden
from subbyte.tvm_kernels.golden_inputs import Given, index_ranges, random_inputs, read_inputs
from subbyte.tvm_kernels.plan import Plan

Array = npt.NDArray[Any]


def golden_tensors(model: Source, plan: Plan, given: Given | None = None, seed: int = 0) -> Golden:
    """Inputs (given, or random from `seed`), the outputs, and the engine that computed those (reference_engine.py).

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
    return Golden(tuple(inputs), made, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, ties, engine)


# Float sums of different engines differ by about 1e-7 of their terms. Float constants and inputs are perturbed by a
# hundred times that, so that every value near a tie may round to the other side; continuous results change by less than
# the tolerance. Values in float16 are perturbed by its precision.
PERTURBATION, PERTURBATION_IN_FLOAT16, MARGIN = 1e-5, 2.0**-10, 4.0
# Operators whose constants are values; those of others, such as Resize, may be shapes.
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "BatchNormalization", "LayerNormalization", "InstanceNormalization"}
_ARITHMETIC |= {"GroupNormalization", "QuantizeLinear", "DequantizeLinear", *PRODUCTS}


def _measured(
    model: onnx.ModelProto, feeds: dict[str, Array], outputs: dict[str, Array], seed: int
) -> tuple[float, ...]:
    """How much ties, and rounding to float16, may change each output: measured with all floats perturbed.

    At most the allowance of a float output; the measured change of an output of indices.
    """
    ties = RoundingTies(model)
    allowed, coarse, elsewhere = ties.allowances(outputs), ties.coarse_values, ties.indices
    floats = [name for name, output in outputs.items() if allowed[name] and output.dtype.kind == "f"]
    names = floats + [name for name in outputs if name in elsewhere]
    if not names:
        return tuple(allowed.values())
    rng = np.random.default_rng(seed)
    by = PERTURBATION_IN_FLOAT16 if coarse else PERTURBATION
    perturbed = {name: _perturbed(array, rng, by) for name, array in feeds.items()}
    try:
        found, _ = reference_engine.run(_perturbed_model(model, rng, by), names, perturbed)
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
                least = PERTURBATION_IN_FLOAT16 * largest_of(outputs[name]) if name in coarse else 0.0
                measured[name] = min(allowed[name], max(least, MARGIN * reach))
    return tuple({**allowed, **measured}.values())


def _perturbed(array: Array, rng: np.random.Generator, by: float) -> Array:
    if array.dtype.kind != "f":
        return array
    factor = 1 + by * (2.0 * rng.integers(0, 2, array.shape) - 1)
    return np.asarray(array * factor).astype(array.dtype)


def _perturbed_model(model: onnx.ModelProto, rng: np.random.Generator, by: float) -> onnx.ModelProto:
    """A copy with perturbed float factors, scales and offsets; integers stored as floats are not changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    read = {name for n in copy.graph.node if n.domain or n.op_type in _ARITHMETIC for name in n.input}
    for tensor in copy.graph.initializer:
        if tensor.name in read and not holds_integers(tensor):
            values = _perturbed(onnx.numpy_helper.to_array(tensor), rng, by)
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
