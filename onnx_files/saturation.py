"""Whether onnxruntime's products of 8-bit integers are exact on this CPU: on x86 without VNNI they are not.

There it adds pairs of uint8 x int8 products in 16 bits, which saturate: 2 x 255 x 127 is beyond 32767. This affects
MatMulInteger, ConvInteger and QLinear*, and QDQ products that its optimizer fuses. It is measured, not derived from CPU
features, because onnxruntime selects its kernels itself.
"""

from __future__ import annotations

import functools

import numpy as np

from subbyte.onnx_files.onnxruntime import onnxruntime


@functools.cache
def onnxruntime_saturates() -> bool:
    """Whether a MatMulInteger of the largest uint8 and int8 differs from the integer product; needs onnxruntime."""
    from onnx import TensorProto, helper, numpy_helper

    codes, weights = np.full((8, 64), 255, np.uint8), np.full((64, 32), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, codes.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [8, 32])],
        [numpy_helper.from_array(weights, "w")],  # a constant, which it packs as it does those of a model
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": codes})
    return not np.array_equal(found, codes.astype(np.int32) @ weights.astype(np.int32))
