"""Every operator of ONNX that takes int8 or uint8, between QuantizeLinear and DequantizeLinear, with any zero point.

A value of a QDQ file is the code, whatever the compiler keeps in memory: each result, in integers and dequantized, is
onnxruntime's bit for bit. What is not compiled is refused with an error of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.helper as helper
import onnx.numpy_helper
import onnx.reference
import pytest
from run_plan import onnxruntime_outputs
from this_machine import needs_newer_onnxruntime

import subbyte
from subbyte.errors import CompileError, ModelError
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph

SHAPE = (1, 4, 6, 6)
STEP = 0.02
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
OTHER = np.random.default_rng(5).integers(0, 100, SHAPE)
ZEROS = [("uint8", 0), ("uint8", 60), ("int8", 0), ("int8", 20)]


class Code:
    """An input of the codes' own type."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)


THE_CODES = "q"  # where the codes are not the first input


@dataclass(frozen=True)
class Use:
    """A node that reads the codes; further inputs are constants."""

    op: str
    inputs: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    only: str = ""  # the type that the operator takes, or that any engine implements


def use(op: str, *inputs: Any, outputs: int = 1, only: str = "", **attributes: Any) -> Use:
    return Use(op, inputs, attributes, outputs, only)


def ints(*values: Any) -> Any:
    return np.asarray(values if len(values) != 1 else values[0], np.int64)


AROUND = ints(0, 0, 1, 1, 0, 0, 1, 2)
# Computed by kernels of ours on codes, or moved as codes.
CODES = [
    use("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    use("MaxPool", kernel_shape=[3, 2], auto_pad="SAME_UPPER"),
    use("Clip", Code(10), Code(100)),
    use("Clip", "", Code(70)),
    use("Relu", only="int8"),
    use("Cast", to=onnx.TensorProto.FLOAT),
    use("Identity"),
    use("Reshape", ints(1, 144)),
    use("Flatten"),
    use("Squeeze", ints([0])),
    use("Unsqueeze", ints([0])),
    use("Transpose", perm=[0, 2, 3, 1]),
    use("Transpose", perm=[0, 2, 1, 3]),
    use("Slice", ints(0, 1), ints(3, 6), ints(1, 3), ints(1, 2)),
    use("Gather", ints(2, 0), axis=1),
    use("Gather", ints(2), axis=1),
    use("GatherElements", np.full(SHAPE, 2, np.int64), axis=3),
    use("GatherND", ints([[0, 1], [0, 2]])),
    use("Split", axis=1, num_outputs=2, outputs=2),
    use("Concat", Code(OTHER), axis=1),
    use("Pad", AROUND),
    use("Pad", AROUND, Code(7)),
    use("Pad", AROUND, mode="reflect"),
    use("Pad", AROUND, mode="edge"),
    use("Expand", ints(2, 4, 6, 6)),
    use("Tile", ints(1, 2, 1, 1)),
]
# The same; onnxruntime 1.23 has them for floats alone.
BLOCKS = [use("DepthToSpace", blocksize=2), use("SpaceToDepth", blocksize=2)]
# Computed on the integers that the codes are.
INTEGERS = [
    *[use(op, Code(12)) for op in ("BitwiseOr", "BitwiseXor", "Add", "Sub", "Mul", "Mod")],
    *[use(op, Code(OTHER + 1)) for op in ("BitwiseAnd", "Div")],
    *[use(op, Code(50)) for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")],
    *[
        use("Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(t)))
        for t in ("int32", "int64", "int8", "uint8", "bool")
    ],
    *[use(op, axis=1) for op in ("ArgMax", "ArgMin")],
    use("BitwiseNot"),
    use("Abs"),
    use("ReduceMax", ints([2, 3]), keepdims=0),
    use("ReduceMin", ints([1])),
    use("CastLike", np.float32(0)),
    use("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    use("CenterCropPad", ints(4, 8), axes=[2, 3]),
]
# The same; onnxruntime 1.23 has them for other types alone.
CHOICES = [
    use("Max", Code(12)),
    use("Min", Code(OTHER + 1)),
    use("Where", np.arange(144).reshape(SHAPE) % 3 == 0, THE_CODES, Code(OTHER)),
]
# Not in onnxruntime for these types: against the reference evaluator.
REFERENCE = [use("Trilu"), use("Einsum", equation="abcd->acbd")]


# Refused: no bytes are computed from others, or what comes out depends on the data.
REFUSED = [
    use("NonZero"),
    use("Unique"),
    use("Compress", np.array([True, False, True, False]), axis=1),
    use("ReverseSequence", ints(1, 2, 3, 4), batch_axis=1, time_axis=2),
    use("TopK", ints([2]), axis=1, outputs=2),
]
# Operators whose int8 or uint8 inputs other tests cover: products, indices, TVM's converters, random inputs.
ELSEWHERE = {
    *("QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
    *("ScatterND", "ScatterElements", "OneHot", "TensorScatter", "Resize", "GridSample", "Col2Im", "Shrink", "Pow"),
    *("Sign", "Neg", "BitShift", "BitCast", "Attention", "Shape", "Size", "EyeLike", "ImageDecoder"),
    *("RandomUniformLike", "RandomNormalLike", "Loop", "Scan", "SequenceMap", "SequenceConstruct", "SequenceInsert"),
    *("SplitToSequence", "Optional", "OptionalHasElement", "OptionalGetElement"),
}


def model_of(dtype: str, zero: int, uses: list[Use]) -> onnx.ModelProto:
    """x -> QuantizeLinear -> each use -> output, and behind a DequantizeLinear another."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = [
        onnx.numpy_helper.from_array(np.float32(STEP), "step"),
        onnx.numpy_helper.from_array(np.array(zero, dtype), "zero"),
    ]
    nodes = [helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"])]
    for index, one in enumerate(uses):
        names: list[str] = []
        for values in one.inputs if THE_CODES in [v for v in one.inputs if isinstance(v, str)] else ["q", *one.inputs]:
            name = values if isinstance(values, str) else f"c{len(constants)}"
            if not isinstance(values, str):
                array = values.values.astype(dtype) if isinstance(values, Code) else np.asarray(values)
                constants.append(onnx.numpy_helper.from_array(array, name))
            names.append(name)
        made = [f"{one.op}{index}.{i}" for i in range(one.outputs)]
        nodes.append(helper.make_node(one.op, names, made, f"{one.op}{index}", **one.attributes))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, SHAPE)], [], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    shapes = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in shapes.graph.value_info:
        if value.name == "q":
            continue
        element = value.type.tensor_type.elem_type
        if element == kind:
            nodes = [helper.make_node("DequantizeLinear", [value.name, "step", "zero"], [f"{value.name}.float"])]
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            model.graph.output.append(helper.make_tensor_value_info(f"{value.name}.float", 1, shape))
        else:
            nodes = []
        if element == onnx.TensorProto.BOOL:
            nodes = [helper.make_node("Cast", [value.name], [f"{value.name}.int"], to=onnx.TensorProto.INT32)]
            value.name, value.type.tensor_type.elem_type = f"{value.name}.int", onnx.TensorProto.INT32
        model.graph.node.extend(nodes)
        model.graph.output.append(value)
    return model


def for_type(dtype: str, uses: list[Use]) -> list[Use]:
    return [one for one in uses if one.only in ("", dtype)]


def assert_same(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert set(got) == set(wanted)
    different = [
        name for name, array in wanted.items() if got[name].dtype != array.dtype or not np.array_equal(got[name], array)
    ]
    assert different == []


@pytest.mark.parametrize(("dtype", "zero"), ZEROS)
@pytest.mark.parametrize(
    "uses", [pytest.param(CODES, id="codes"), pytest.param(BLOCKS, marks=needs_newer_onnxruntime, id="blocks")]
)
def test_compiled_operators_on_codes_give_onnxruntimes_integers(
    tmp_path: Path, uses: list[Use], dtype: str, zero: int
) -> None:
    model = model_of(dtype, zero, for_type(dtype, uses))
    subbyte.compile(model, tmp_path / "q.subbyte", golden_inputs=[X])
    with subbyte.load(tmp_path / "q.subbyte", threads=1) as session:
        assert_same(session.run(X), onnxruntime_outputs(model, {"x": X}))


@pytest.mark.parametrize(("dtype", "zero"), ZEROS)
@pytest.mark.parametrize(
    "uses",
    [
        pytest.param([*CODES, *INTEGERS], id="codes"),
        pytest.param([*BLOCKS, *CHOICES], marks=needs_newer_onnxruntime, id="blocks and choices"),
    ],
)
def test_lowered_operators_on_codes_give_onnxruntimes_integers(uses: list[Use], dtype: str, zero: int) -> None:
    model = model_of(dtype, zero, for_type(dtype, uses))
    assert_same(interpret(lower_graph(model), {"x": X}), onnxruntime_outputs(model, {"x": X}))


@pytest.mark.parametrize(("dtype", "zero"), ZEROS)
def test_operators_that_onnxruntime_lacks_give_the_reference_evaluators_integers(dtype: str, zero: int) -> None:
    model = model_of(dtype, zero, REFERENCE)
    names = [output.name for output in model.graph.output]
    wanted = dict(zip(names, onnx.reference.ReferenceEvaluator(model).run(names, {"x": X}), strict=True))
    assert_same(interpret(lower_graph(model), {"x": X}), wanted)


@pytest.mark.parametrize("one", REFUSED, ids=lambda one: one.op)
def test_other_operators_on_codes_are_refused(one: Use) -> None:
    with pytest.raises((CompileError, ModelError), match=one.op):
        lower(model_of("int8", 20, [one]), frozenset())


def test_every_operator_that_takes_8_bit_integers_is_stated() -> None:
    """A newer onnx that has another one fails here: give it a row."""
    taking = set()
    for schema in onnx.defs.get_all_schemas():
        kinds = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
        accepted = {kind for value in schema.inputs for kind in kinds.get(value.type_str, [value.type_str])}
        if not schema.domain and not schema.deprecated and accepted & {"tensor(int8)", "tensor(uint8)"}:
            taking.add(schema.name)
    stated = {one.op for one in (*CODES, *BLOCKS, *INTEGERS, *CHOICES, *REFERENCE, *REFUSED)} | ELSEWHERE
    assert taking - stated == set()
