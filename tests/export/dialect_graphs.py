"""Small graphs in the dialect, made by hand and at random, for tests that need no torch."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from subbyte.dialect.names import IR_VERSION, OPSET
from subbyte.export.functions import append_functions
from subbyte.formats import LowBitTensor, PerChannel, get


def quantized_cnn(weight_format: str = "ternary", seed: int = 0) -> onnx.ModelProto:
    """input [2, 3, 6, 6] -> quantized 3x3 Conv (stride 2, 8 channels), Relu, exact mean, quantized Linear -> [2, 4]."""
    random = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {}
    nodes = []

    def constant(name, value):
        constants[name] = value
        return name

    def scalar(name, value):
        return constant(name, np.array(value, np.float32))

    def quantize(name, x, inverse_step, low, high):
        inputs = [x, scalar(f"{name}.inverse_step", inverse_step), scalar(f"{name}.low", low)]
        inputs.append(scalar(f"{name}.high", high))
        nodes.append(helper.make_node("Quantize", inputs, [f"{name}.codes"], name=f"{name}/Quantize", domain="subbyte"))
        return f"{name}.codes"

    def decode(name, fmt, shape):
        tensor = LowBitTensor.from_levels(
            fmt, random.choice(fmt.levels.values, size=shape), np.ones(shape[0], np.float32), PerChannel()
        )
        inputs = [constant(f"{name}.packed", tensor.packed), constant(f"{name}.shape", np.array(shape, np.int64))]
        op = fmt.decoder
        nodes.append(helper.make_node(op, inputs, [f"{name}.levels"], name=f"{name}/{op}", domain="subbyte"))
        return f"{name}.levels"

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attributes))
        return output

    def epilogue(name, product, channels, shape, largest):
        rounded = node("Round", [product], f"{name}.sum")
        scale = (random.uniform(0.001, 0.01, channels) / largest).astype(np.float32).reshape(shape)
        scaled = node("Mul", [rounded, constant(f"{name}.scale", scale)], f"{name}.scaled")
        bias = random.normal(size=channels).astype(np.float32).reshape(shape)
        return scaled, constant(f"{name}.bias", bias)

    codes = quantize("/conv", "input", 40.0, -128, 127)
    levels = decode("/conv", get(weight_format), (8, 3, 3, 3))
    product = node("Conv", [codes, levels], "conv.product", strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    scaled, bias = epilogue("conv", product, 8, (1, 8, 1, 1), get(weight_format).largest)
    x = node("Relu", [node("Add", [scaled, bias], "conv.y")], "relu")
    codes = quantize("/pool", x, 20.0, 0, 255)
    axes = constant("pool.axes", np.array([2, 3], np.int64))
    total = node("ReduceSum", [codes, axes], "pool.sum", keepdims=0)
    mean = node("Mul", [total, scalar("pool.step", 1 / 20 / 9)], "pool.y")
    codes = quantize("/head", mean, 50.0, 0, 255)
    levels = node("Transpose", [decode("/head", get("int4"), (4, 8))], "head.transposed", perm=[1, 0])
    product = node("MatMul", [codes, levels], "head.product")
    scaled, bias = epilogue("head", product, 4, (4,), get("int4").largest)
    node("Add", [scaled, bias], "logits")
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [2, 3, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return model_of(graph)


def model_of(graph):
    """A model of `graph` with the opset and IR version of exports, and the functions that it calls."""
    opsets = [helper.make_opsetid("", OPSET)]
    return append_functions(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION))
