"""The reference engine that a bundle is compared with: it computes the unchanged file as ONNX defines it.

onnxruntime without optimisation, else onnx's reference evaluator: where onnxruntime lacks an operator, and where its
results are not those that ONNX defines (on x86 without VNNI integers saturate; MatMulNBits may quantize activations to
int8; float16 is computed in float32).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from subbyte.dialect.exactness import INTEGER_PRODUCTS, STATES_OUTPUT_DTYPE
from subbyte.dialect.function_calls import ENGINES_OWN, inline_foreign_functions
from subbyte.dialect.walk import every_node
from subbyte.errors import ModelError, one_line
from subbyte.onnx_files.loader import Source, open_onnx
from subbyte.onnx_files.onnxruntime import onnxruntime
from subbyte.onnx_files.saturation import onnxruntime_saturates

Array = npt.NDArray[Any]

# Products of 8-bit integers in onnxruntime, by their operators in a file.
_INTEGER_PRODUCTS = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QAttention", "QLinearGemm"}
_INTEGER_PRODUCTS |= INTEGER_PRODUCTS
FLOAT32_LEVELS = (0, 1)  # accuracy_level of MatMulNBits: unset, float32
# onnxruntime computes these in float32, even a Pad: it inserts Casts and removes those between two nodes, so that
# values are rounded too late or not at all.
HALVES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
COMPUTES_NOTHING = {"Cast", "Constant", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def run(source: Source, names: list[str], feeds: Mapping[str, Array]) -> tuple[list[Array], str]:
    """The outputs `names` of a file or model, and the engine's name; raises ModelError with the engines' reasons."""
    reasons = []
    model = loaded(source)
    if any(function.domain.startswith(ENGINES_OWN) for function in model.functions):
        model = inline_foreign_functions(model)
    inexact = inexact_in_onnxruntime(model)
    if inexact is None:
        try:
            return _onnxruntime(model, names, feeds)
        except ImportError:
            reasons.append("onnxruntime is not installed")
        except Exception as error:  # its own kinds: an operator or version that it lacks, an index out of bounds
            reasons.append(f"onnxruntime: {one_line(error)}")
    try:
        return _evaluator(model, names, feeds)
    except Exception as error:  # the evaluator raises many kinds
        reasons.append(f"onnx.reference: {one_line(error)}")
    raise ModelError("; ".join(reasons))


def loaded(source: Source) -> onnx.ModelProto:
    """The unchanged file."""
    return source if isinstance(source, onnx.ModelProto) else open_onnx(source).model


def inexact_in_onnxruntime(model: onnx.ModelProto) -> str | None:
    """Why onnxruntime's results are not as ONNX defines them; None if they are."""
    for node in every_node(model):
        if node.op_type == "MatMulNBits":
            level = next((a.i for a in node.attribute if a.name == "accuracy_level"), 0)
            if level not in FLOAT32_LEVELS:
                return f"MatMulNBits of accuracy_level {level} rounds activations"
        if node.op_type in _INTEGER_PRODUCTS and _saturates():
            return f"{node.op_type} saturates on this CPU"
    return _computes_in_halves(model)


def _computes_in_halves(model: onnx.ModelProto) -> str | None:
    """The first node in float16 or bfloat16, but for Casts and what onnxruntime has in these types, too."""
    halves = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    halves |= {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    halves = {name: kind for name, kind in halves.items() if kind in HALVES}
    for node in every_node(model):
        made = [a.t.data_type if a.HasField("t") else a.i for a in node.attribute if a.name in STATES_OUTPUT_DTYPE]
        read = [halves[name] for name in node.input if name in halves]
        kind = next((kind for kind in (*made, *read) if kind in HALVES), None)
        if kind is None:
            continue
        if node.op_type not in COMPUTES_NOTHING:
            return f"{node.op_type} computes in {HALVES[kind]}, onnxruntime in float32"
        if node.op_type != "Cast" or kind in made:
            halves |= dict.fromkeys(node.output, kind)
    return None


def _saturates() -> bool:
    try:
        return onnxruntime_saturates()
    except ImportError:
        return False


def _onnxruntime(model: onnx.ModelProto, names: list[str], feeds: Mapping[str, Array]) -> tuple[list[Array], str]:
    ort = onnxruntime()
    options = ort.SessionOptions()
    # Optimised, it fuses DequantizeLinear and MatMul into products with int8 activations, with different results.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, dict(feeds)), f"onnxruntime {ort.__version__} without optimisation"


def _evaluator(model: onnx.ModelProto, names: list[str], feeds: Mapping[str, Array]) -> tuple[list[Array], str]:
    from onnx.reference import ReferenceEvaluator

    from subbyte.tvm_kernels.foreign_reference import OPERATORS

    known = {entry.domain for entry in model.opset_import}
    missing = {op.op_domain for op in OPERATORS} - known
    if missing:  # a file may use a domain of onnxruntime's without importing it
        model = copy.deepcopy(model)
        model.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in missing if domain)
    with np.errstate(all="ignore"):
        evaluator = ReferenceEvaluator(model, new_ops=list(OPERATORS))
        made = evaluator.run(names, dict(feeds))
    return [np.asarray(output) for output in made], f"onnx.reference {onnx.__version__}"
