"""Small ONNX models made by hand in the dialect of docs/onnx-dialect.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import onnx.numpy_helper

from subbyte import formats
from subbyte.dialect.names import IR_VERSION, OPSET
from subbyte.export.functions import append_functions

Shape = tuple[int, ...]


class Builder:
    """Adds nodes and constants; every method returns the name of what it made."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.rng = np.random.default_rng(seed)

    def input(self, *shape: int, name: str = "x", dtype: int = onnx.TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{op.lower()}{len(self.nodes)}.{index}" for index in range(outputs)]
        name = f"n{len(self.nodes)}.{op}"
        self.nodes.append(helper.make_node(op, inputs, names, name, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def uniform(self, *shape: int, low: float = 0.5, high: float = 1.5) -> str:
        return self.constant(self.rng.uniform(low, high, shape))

    # ---- the dialect ----

    def quantize(self, x: str, inverse_step: float = 20.0, low: int = -128, high: int = 127) -> str:
        limits = [self.constant(value) for value in (inverse_step, low, high)]
        return self.node("Quantize", x, *limits, domain="subbyte")

    def binarize(self, x: str, threshold: Any = 0.0) -> str:
        return self.node("Binarize", x, self.constant(threshold), domain="subbyte")

    def decode(self, fmt: str, *shape: int) -> str:
        found = formats.get(fmt)
        levels = self.rng.choice(found.levels.values, (shape[0], int(np.prod(shape[1:]))))
        packed = self.constant(formats.pack(found.encode(levels), found.code_bits), np.uint8)
        name = "Decode" + fmt.capitalize()
        return self.node(name, packed, self.constant(shape, np.int64), domain="subbyte")

    def conv(self, codes: str, fmt: str, *shape: int, **attributes: Any) -> str:
        """Quantized convolution with scale and bias; shape is that of the weight."""
        total = self.node("Round", self.node("Conv", codes, self.decode(fmt, *shape), **attributes))
        channels = (1, shape[0], *([1] * (len(shape) - 2)))
        scaled = self.node("Mul", total, self.uniform(*channels, low=0.001, high=0.02))
        return self.node("Add", scaled, self.uniform(*channels, low=-0.5, high=0.5))

    def linear(self, codes: str, fmt: str, columns: int, depth: int) -> str:
        weight = self.node("Transpose", self.decode(fmt, columns, depth), perm=[1, 0])
        total = self.node("Round", self.node("MatMul", codes, weight))
        scaled = self.node("Mul", total, self.uniform(columns, low=0.001, high=0.02))
        return self.node("Add", scaled, self.uniform(columns, low=-0.5, high=0.5))

    def model(self, *outputs: str, opset: int | None = None) -> onnx.ModelProto:
        """The finished model; output shapes are inferred."""
        infos = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "hand_made", self.inputs, infos, self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        made = append_functions(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION))
        inlined = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(made), data_prop=True)
        known = {info.name: info for info in (*inlined.graph.value_info, *inlined.graph.output)}
        del made.graph.output[:]
        made.graph.output.extend(known[name] for name in outputs)
        if opset is not None:
            made.opset_import[0].version = opset
        return made


def cnn(weights: str = "ternary") -> onnx.ModelProto:
    """Two convolutions with a residual between, global average, a classifier: all quantized."""
    b = Builder()
    x = b.input(1, 3, 8, 8)
    first = b.node("Relu", b.conv(b.quantize(x), "int8", 8, 3, 3, 3, pads=[1, 1, 1, 1]))
    codes = b.quantize(first, 16.0, 0, 255)
    second = b.conv(codes, weights, 8, 8, 3, 3, pads=[1, 1, 1, 1])
    y = b.node("Relu", b.node("Add", second, first))
    summed = b.node("ReduceSum", b.quantize(y, 16.0, 0, 255), b.constant([2, 3], np.int64), keepdims=0)
    mean = b.node("Mul", summed, b.constant(1 / 16 / 64))
    return b.model(b.linear(b.quantize(mean, 30.0), "int4", 5, 8))
