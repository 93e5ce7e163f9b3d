"""Golden inputs and outputs of a model: what a reference engine says that the bundle must give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from subbyte.errors import ModelError
from subbyte.exactness import tie_allowances
from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from subbyte.tvm_kernels import reference_engine
from subbyte.tvm_kernels.emit import Golden
from subbyte.tvm_kernels.golden_inputs import Given, index_ranges, random_inputs, read_inputs
from subbyte.tvm_kernels.plan import Plan

Array = npt.NDArray[Any]


def golden_tensors(
    model: str | Path | onnx.ModelProto, plan: Plan, given: Given | None = None, seed: int = 0
) -> tuple[Golden, str]:
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
    allowed = tie_allowances(reference_engine.loaded(model), dict(zip(names, made, strict=True)))
    ties = _measured(model, feeds, dict(zip(names, made, strict=True)), allowed, seed)
    return Golden(tuple(inputs), made, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, ties), engine


# Float sums differ between engines by some 1e-7 of their terms: inputs that are moved by ten times that cross the ties
# that an engine may cross, and others.
MOVED_BY, RUNS, MARGIN = 1e-6, 3, 4.0


def _measured(
    model: str | Path | onnx.ModelProto,
    feeds: dict[str, Array],
    outputs: dict[str, Array],
    allowed: dict[str, float],
    seed: int,
) -> tuple[float, ...]:
    """What ties may move each float output, of what is `allowed`: as far as tiny moves of the float inputs move it."""
    floats = [name for name, output in outputs.items() if allowed[name] and output.dtype.kind == "f"]
    if not floats or all(array.dtype.kind != "f" for array in feeds.values()):
        return tuple(allowed.values())
    rng = np.random.default_rng(seed)
    moved = [
        {
            name: array * (1 + rng.uniform(-MOVED_BY, MOVED_BY, array.shape)).astype(array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in feeds.items()
        }
        for _ in range(RUNS)
    ]
    reach: dict[str, float] = {}
    found, _ = reference_engine.runs(model, floats, moved)
    for run in found:
        for name, output in zip(floats, run, strict=True):
            difference = np.abs(output.astype(np.float64) - outputs[name])
            reach[name] = max(reach.get(name, 0.0), float(difference.max(initial=0.0)))
    measured = {name: min(allowed[name], MARGIN * reach[name]) for name in floats if np.isfinite(reach[name])}
    return tuple({**allowed, **measured}.values())


def _refused(plan: Plan, inputs: list[Array], random: bool, reason: Exception) -> str:
    described = ", ".join(
        f"'{tensor.name}' {array.dtype} {list(array.shape)}"
        + (f" in {array.min()} .. {array.max()}" if array.size and array.dtype.kind != "f" else "")
        for tensor, array in zip(plan.inputs, inputs, strict=True)
    )
    do = "give inputs that it accepts with --golden-inputs FILE.npz (golden_inputs=)"
    kind = "random golden inputs" if random else "given golden inputs"
    return f"no reference could run the model on its {kind} {described}: {reason}. If they do not fit the model, {do}"
