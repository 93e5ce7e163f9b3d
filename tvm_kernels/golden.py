"""Golden inputs and outputs of a model: those that a reference engine computes, which the bundle must reproduce."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper

from subbyte.dialect.exactness import PRODUCTS, RoundingTies, holds_integers, largest_of
from subbyte.dialect.example_inputs import random_inputs
from subbyte.errors import ModelError
from subbyte.onnx_files.loader import OnnxFile, Source
from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from subbyte.tvm_kernels import reference_engine
from subbyte.tvm_kernels.emit import Golden
from subbyte.tvm_kernels.golden_inputs import Given, golden_ranges, read_inputs
from subbyte.tvm_kernels.plan import Plan, Tensor
from subbyte.tvm_kernels.states import with_states

Array = npt.NDArray[Any]


RUNS = 4  # of a model with state: a next value that is lost, late or of another run shows in a later run


def golden_tensors(model: Source, plan: Plan, given: Given | None = None, seed: int = 0) -> Golden:
    """Inputs (given, or random from `seed`), the outputs, and the engine that computed those (reference_engine.py).

    Of a model with state: runs in a row, from the initial state on. Raises UsageError for given inputs that do not fit,
    ModelError when no engine takes the inputs.
    """
    file = with_states(model)
    runs = _runs(file, plan, given, seed)
    try:
        made, engine = _computed(file, plan, runs)
    except ModelError as error:
        raise ModelError(_refused(plan, runs[0], given is None, error)) from error
    for tensor in (*plan.outputs, *(state.tensor for state in plan.states)):
        _check_kind(
            tensor, made[tensor.name], engine, runs=0 if tensor.place.space == "state" or not plan.states else len(runs)
        )
    ties = _measured(file, plan, runs, made, seed)
    outputs, states = ([made[t.name] for t in some] for some in (plan.outputs, [s.tensor for s in plan.states]))
    inputs = [np.stack(arrays) for arrays in zip(*runs, strict=True)] if plan.states else runs[0]
    return Golden(tuple(inputs), tuple(outputs), RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, ties, engine, tuple(states))


def _runs(file: OnnxFile, plan: Plan, given: Given | None, seed: int) -> list[list[Array]]:
    """The inputs of each run; given ones are those of every run."""
    count = RUNS if plan.states else 1
    if given is not None:
        return [read_inputs(given, plan.inputs)] * count
    ranges = golden_ranges(file)
    return [random_inputs(plan.inputs, seed + run, ranges) for run in range(count)]


def _computed(file: OnnxFile, plan: Plan, runs: list[list[Array]]) -> tuple[dict[str, Array], str]:
    """What the reference gives for runs in a row, by name, and its name: outputs, of each run where there is state, and
    the state after the last."""
    outputs = [tensor.name for tensor in plan.outputs]
    states = {state: np.asarray(initial) for state, initial in (file.states or {}).items()}
    collected: list[list[Array]] = []
    engine = "none"
    for inputs in runs:
        feeds = {tensor.name: array for tensor, array in zip(plan.inputs, inputs, strict=True)}
        feeds |= {state.input: value for state, value in states.items()}
        found, engine = reference_engine.run(file, [*outputs, *(state.output for state in states)], feeds)
        collected.append([np.asarray(array, order="C") for array in found])
        states = dict(zip(states, collected[-1][len(outputs) :], strict=True))
    rows = [np.stack(arrays) if states else arrays[0] for arrays in zip(*collected, strict=True)][: len(outputs)]
    return dict(zip(outputs, rows, strict=True)) | {
        s.input: np.asarray(v, order="C") for s, v in states.items()
    }, engine


def _check_kind(tensor: Tensor, array: Array, engine: str, runs: int) -> None:
    shape = (runs, *tensor.shape) if runs else tuple(tensor.shape)
    if array.shape != shape or str(array.dtype) != tensor.dtype:
        raise ModelError(
            f"output '{tensor.name}' of {engine} is {array.dtype} {list(array.shape)}; "
            f"the compiled model has {tensor.dtype} {list(shape)}"
        )


# Float sums of different engines differ by about 1e-7 of their terms. Float constants and inputs are perturbed by a
# hundred times that, so that every value near a tie may round to the other side; continuous results change by less than
# the tolerance. Values in float16 are perturbed by its precision.
PERTURBATION, PERTURBATION_IN_FLOAT16, MARGIN = 1e-5, 2.0**-10, 4.0
# Operators whose constants are values; those of others, such as Resize, may be shapes.
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "BatchNormalization", "LayerNormalization", "InstanceNormalization"}
_ARITHMETIC |= {"GroupNormalization", "QuantizeLinear", "DequantizeLinear", *PRODUCTS}


def _measured(
    file: OnnxFile, plan: Plan, runs: list[list[Array]], made: dict[str, Array], seed: int
) -> tuple[float, ...]:
    """How much ties, and rounding to float16, may change each output: measured with all floats perturbed.

    At most the allowance of a float output; the measured change of an output of indices.
    """
    ties = RoundingTies(file.model)
    called = {state.input: state.output for state in file.states or {}}  # a state is known by its output there
    outputs = {called.get(name, name): array for name, array in made.items()}
    allowed, coarse, elsewhere = ties.allowances(outputs), ties.coarse_values, ties.indices
    floats = [name for name, output in outputs.items() if allowed[name] and output.dtype.kind == "f"]
    names = floats + [name for name in outputs if name in elsewhere]
    if not names:
        return tuple(allowed.values())
    rng = np.random.default_rng(seed)
    by = PERTURBATION_IN_FLOAT16 if coarse else PERTURBATION
    perturbed = [[_perturbed(array, rng, by) for array in inputs] for inputs in runs]
    try:
        found, _ = _computed(file.of_model(_perturbed_model(file.model, rng, by)), plan, perturbed)
    except ModelError:  # a constant that must be what it is
        return tuple(allowed.values())
    measured = {}
    for key, output in found.items():
        name = called.get(key, key)
        if name in names and output.shape == outputs[name].shape:
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
