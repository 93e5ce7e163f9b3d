"""Run a plan in this process, kernel by kernel, in memory full of rubbish; and compare with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import tvm
import tvm.s_tir  # registers the default pipeline

from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.abi import on_one_thread
from subbyte.tvm_kernels.kernels.tir.execute import aligned, host_target
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.plan import Plan, Tensor


def onnxruntime_outputs(model: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, Any]:
    """What onnxruntime gives without optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def random_inputs(model: onnx.ModelProto, seed: int = 0) -> dict[str, Any]:
    """Normal numbers for every float input of a model."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        found[value.name] = rng.standard_normal(shape).astype(np.float32)
    return found


def run_plan(plan: Plan, inputs: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[Tensor, Any]]]:
    """Outputs by name, and every traced tensor with what lay there right after its call."""
    rng = np.random.default_rng(1)
    spaces = {"weights": aligned((len(plan.weights),), np.uint8)}
    spaces["weights"][:] = np.frombuffer(plan.weights, np.uint8)
    for name, size in (("arena", plan.arena_bytes), ("workspace", plan.workspace_bytes)):
        spaces[name] = aligned((size,), np.uint8)
        spaces[name][:] = rng.integers(0, 256, size)
    given = [aligned(tensor.shape, tensor.dtype) for tensor in plan.inputs]
    for array, tensor in zip(given, plan.inputs, strict=True):
        array[...] = inputs[tensor.name]
    results = [aligned(tensor.shape, tensor.dtype) for tensor in plan.outputs]

    def view(space: str, offset: int, dtype: str, shape: tuple[int, ...]) -> Any:
        if space in ("input", "output"):
            raw = (given if space == "input" else results)[offset].reshape(-1).view(np.uint8)
        else:
            raw = spaces[space][offset:]
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert raw.size >= nbytes, (space, offset, shape)
        return raw[:nbytes].view(dtype).reshape(shape)

    target = host_target(host_features())
    trace = []
    for call in plan.calls:
        function = on_one_thread(call.function).with_attr("global_symbol", "kernel")
        module = tvm.tirx.build(tvm.IRModule({"kernel": function}), target=target)
        buffers = [(str(p.dtype), tuple(int(d) for d in p.shape)) for p in call.function.params]
        assert len(buffers) == len(call.arguments)
        arrays = [
            view(a.space, a.offset, dtype, shape) for a, (dtype, shape) in zip(call.arguments, buffers, strict=True)
        ]
        module["kernel"](*[tvm.runtime.from_dlpack(array) for array in arrays])
        for tensor in call.outputs:
            place = tensor.place
            trace.append((tensor, view(place.space, place.offset, tensor.dtype, tensor.shape).copy()))
    return {tensor.name: array for tensor, array in zip(plan.outputs, results, strict=True)}, trace


def onnx_array(array: Any, storage: ops.Storage, layout: str) -> Any:
    """A stored array as the ONNX value that it stands for: levels as float32, NCHW."""
    values = array if storage.kind == "float" else storage.levels(array).astype(np.float32)
    if layout == "NHWC":
        values = np.moveaxis(values, -1, 1)
    return values
