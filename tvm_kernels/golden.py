"""Golden inputs and outputs of a model: what a reference engine says that the bundle must give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from subbyte.errors import ModelError, UsageError
from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from subbyte.tvm_kernels.emit import Golden
from subbyte.tvm_kernels.plan import Plan, Tensor

Array = npt.NDArray[Any]


def random_inputs(inputs: Sequence[Tensor], seed: int = 0) -> list[Array]:
    """Seeded inputs: standard normal for float32, 0 .. 127 for integers."""
    rng = np.random.default_rng(seed)
    made = []
    for tensor in inputs:
        if tensor.dtype == "float32":
            made.append(rng.standard_normal(tensor.shape, np.float32))
        else:
            made.append(rng.integers(0, 128, tensor.shape).astype(tensor.dtype))
    return made


def read_inputs(given: Sequence[Any], inputs: Sequence[Tensor]) -> list[Array]:
    """Arrays or .npy files as the model's inputs; raises UsageError for a wrong number, shape or dtype."""
    if len(given) != len(inputs):
        raise UsageError(f"{len(given)} golden inputs for a model with {len(inputs)}: give one for each")
    arrays = []
    for value, tensor in zip(given, inputs, strict=True):
        if isinstance(value, (str, Path)):
            try:
                value = np.load(value, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UsageError(f"golden input {value} is not a readable .npy file: {error}") from error
        array = np.asarray(value)
        if array.shape != tuple(tensor.shape) or str(array.dtype) != tensor.dtype:
            raise UsageError(
                f"golden input '{tensor.name}' is {array.dtype} {list(array.shape)}, "
                f"the model takes {tensor.dtype} {list(tensor.shape)}"
            )
        arrays.append(np.asarray(array, order="C"))  # ascontiguousarray would give a scalar an axis
    return arrays


def golden_tensors(
    model: str | Path | onnx.ModelProto, plan: Plan, given: Sequence[Any] | None = None, seed: int = 0
) -> tuple[Golden, str]:
    """Inputs (given, or random from `seed`), the outputs, and what made those: onnxruntime, or else onnx.reference."""
    inputs = random_inputs(plan.inputs, seed) if given is None else read_inputs(given, plan.inputs)
    feeds = {tensor.name: array for tensor, array in zip(plan.inputs, inputs, strict=True)}
    names = [tensor.name for tensor in plan.outputs]
    outputs, engine = _reference_outputs(model, names, feeds)
    made = tuple(np.asarray(array, order="C") for array in outputs)
    for tensor, array in zip(plan.outputs, made, strict=True):
        if array.shape != tuple(tensor.shape) or str(array.dtype) != tensor.dtype:
            raise ModelError(
                f"output '{tensor.name}' of {engine} is {array.dtype} {list(array.shape)}; "
                f"the compiled model has {tensor.dtype} {list(tensor.shape)}"
            )
    return Golden(tuple(inputs), made, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE), engine


def _reference_outputs(
    model: str | Path | onnx.ModelProto, names: list[str], feeds: dict[str, Array]
) -> tuple[list[Array], str]:
    try:
        import onnxruntime
    except ImportError:
        return _onnx_reference(model, names, feeds)
    options = onnxruntime.SessionOptions()
    # Optimised, it fuses DequantizeLinear and MatMul into products with int8 activations: other numbers.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        outputs = session.run(names, feeds)
    except Exception:  # onnxruntime's own kinds: an operator or version it lacks; onnx.reference may have it
        return _onnx_reference(model, names, feeds)
    return outputs, f"onnxruntime {onnxruntime.__version__} without optimisation"


def _onnx_reference(
    model: str | Path | onnx.ModelProto, names: list[str], feeds: dict[str, Array]
) -> tuple[list[Array], str]:
    from onnx.reference import ReferenceEvaluator

    loaded = model if isinstance(model, onnx.ModelProto) else onnx.load(str(model))
    try:
        outputs = ReferenceEvaluator(loaded).run(names, feeds)
    except Exception as error:  # the evaluator raises many kinds
        raise ModelError(f"no reference could run the model for its golden outputs: {error}") from error
    return [np.asarray(output) for output in outputs], f"onnx.reference {onnx.__version__}"
