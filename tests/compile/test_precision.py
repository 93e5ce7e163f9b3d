"""float64 and float16 between Casts: computed in float32 where that gives the numbers of the file."""

from __future__ import annotations

import subprocess

import numpy as np
import onnx
import onnx.helper as helper
import onnx.numpy_helper
import onnx.parser
import onnx.reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from run_plan import run_plan
from this_machine import skip_for_lack_of

import subbyte
from subbyte.errors import CompileError, InputError
from subbyte.tvm_kernels import precision, reference_engine
from subbyte.tvm_kernels.emit.source_files import EXAMPLE_FILES, MODEL_FILES
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines.host import host_features

IMAGE = (2, 3, 4, 6)
KINDS = {"float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}


def randoms(*shape, seed=1):
    return np.random.default_rng(seed).uniform(0.25, 1.0, shape)


def between_casts(dtype, op, constants=(), attributes=None, opset=21, to=TensorProto.FLOAT, outputs=1, shape=IMAGE):
    """x to a type, an operator with constants (those of float64 in the type), Neg where it can be, and back."""
    made = []
    for index, values in enumerate(constants):
        array = np.asarray(values)
        array = array.astype(dtype) if array.dtype == np.float64 else array
        made.append(onnx.numpy_helper.from_array(array, f"c{index}"))
    results = ["made", *(f"made{index}" for index in range(1, outputs))]
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], "enter", to=KINDS[dtype]),
        helper.make_node(op, ["narrow", *(tensor.name for tensor in made)], results, "node", **(attributes or {})),
        helper.make_node("Cast", [results[-1]], ["y"], "leave", to=to),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", to, None)
    graph = helper.make_graph(nodes, "between_casts", [x], [y], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def inputs_of(model):
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(0).uniform(0.1, 0.9, shape).astype(np.float32)}


def wanted_of(model, inputs):
    (wanted,), _ = reference_engine.run(model, ["y"], inputs)
    return wanted


AXES = np.array([2, 3])
_UNARY = """
    Abs Neg Relu Reciprocal Sqrt LeakyRelu Exp Log Erf Sigmoid Tanh Softplus Softsign Sin Cos Tan Asin Acos Atan Sinh
    Cosh Asinh Atanh HardSigmoid HardSwish Elu Selu Mish Softmax LogSoftmax GlobalAveragePool GlobalMaxPool Identity
"""
_BINARY = "Add Sub Mul Div Max Min Sum Mean Pow PRelu"
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
ARITHMETIC = {
    **dict.fromkeys(_UNARY.split(), ()),
    **{op: (randoms(6),) for op in _BINARY.split()},
    "Clip": (np.array(0.2), np.array(0.7)),
    "Gelu": (),
    "Swish": (),
    "MatMul": (randoms(6, 5),),
    "Einsum": (randoms(6, 5),),
    "Conv": (randoms(4, 3, 3, 3), randoms(4)),
    "ConvTranspose": (randoms(3, 2, 2, 2),),
    "BatchNormalization": (randoms(3), randoms(3), randoms(3), randoms(3)),
    "LayerNormalization": (randoms(6), randoms(6)),
    "InstanceNormalization": (randoms(3), randoms(3)),
    "RMSNormalization": (randoms(6),),
    "LRN": (),
    "AveragePool": (),
    "MaxPool": (),
    "LpPool": (),
    "Resize": (np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)),
    **{
        f"Reduce{kind}": (AXES,)
        for kind in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
    },
    "Transpose": (),
    "Reshape": (np.array([6, 24]),),
    "Slice": (np.array([1]), np.array([5]), np.array([3])),
    "Pad": (np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.array(0.5)),
    "Gather": (np.array([1, 0]),),
    "Concat": (randoms(*IMAGE),),
}
ATTRIBUTES = {
    "Einsum": {"equation": "nchw,wk->nchk"},
    "LRN": {"size": 3},
    "Concat": {"axis": 1},
    **{op: {"kernel_shape": [2, 2]} for op in ("AveragePool", "MaxPool", "LpPool")},
}
OPSETS = {"RMSNormalization": 23, "Swish": 24}
UNIT_ROUNDOFF = {"float64": 2.0**-23, "float16": 2.0**-11}


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("op", ARITHMETIC)
def test_arithmetic_between_casts_is_computed_in_float32(op, dtype):
    opset = OPSETS.get(op, 21)
    if opset > onnx.defs.onnx_opset_version():
        skip_for_lack_of(f"an onnx with opset {opset}")
    model = between_casts(dtype, op, ARITHMETIC[op], ATTRIBUTES.get(op), opset)
    inputs = inputs_of(model)
    graph = lower_graph(model, host_features())
    made = interpret(graph, inputs)["y"]
    wanted = wanted_of(model, inputs)
    moves = op in precision.DATA_MOVEMENT
    assert len(graph.notes) == (0 if moves else 1)
    if not moves:
        read_as = "Add" if op == "Sum" else op
        assert f"1 {dtype} operator from 'node' ({read_as}) on: computed in float32" in graph.notes[0]
        assert not any(value.dtype == "float64" for value in graph.values.values())
    exact = moves or (dtype == "float16" and op in precision.ROUNDED_ONCE)
    rounding = 0 if exact else 8 * UNIT_ROUNDOFF[dtype]
    np.testing.assert_allclose(made, wanted, rounding, rounding * np.abs(wanted).max())


def test_every_arithmetic_operator_is_one_of_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas()} | {op for _, op in precision.FOREIGN}
    younger = {"Swish", "RMSNormalization", "RotaryEmbedding", "Attention"}  # than the oldest onnx that we take
    assert known | younger >= precision.ARITHMETIC | precision.DISCONTINUOUS


DECIDES = {
    "to integers": (between_casts, ("Mul", (np.array(7.3),)), {"to": TensorProto.INT64}, "converts it to int64"),
    "ArgMax": (between_casts, ("ArgMax",), {"to": TensorProto.INT32}, "makes int64"),
    "Greater": (between_casts, ("Greater", (np.array(0.5),)), {}, "makes bool"),
    "Floor": (between_casts, ("Floor",), {}, "is discontinuous"),
    "Round": (between_casts, ("Round",), {}, "is discontinuous"),
    "Mod": (between_casts, ("Mod", (np.array(0.3),), {"fmod": 1}), {}, "is discontinuous"),
}


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", DECIDES)
def test_what_decides_by_a_float_has_the_numbers_of_its_type(name, dtype):
    """In float64 as the file says, in float16 rounded after each operator: equal to the reference."""
    make, arguments, more, reason = DECIDES[name]
    model = make(dtype, *arguments, **more)
    inputs = inputs_of(model)
    plan = lower(model, host_features())
    np.testing.assert_array_equal(run_plan(plan, inputs)[0]["y"], wanted_of(model, inputs))
    if dtype == "float64":
        assert any("computed in float64, without kernels" in line and reason in line for line in plan.notes)
    else:
        assert any("rounded to float16 after each" in line for line in plan.notes)


def test_a_constant_that_float32_does_not_hold_keeps_float64():
    """(x + 1e9) - 1e9: float32 loses every digit of x."""
    model = between_casts("float64", "Add", (np.array(1e9),))
    model.graph.node[-1].input[0] = "near"
    model.graph.node.insert(2, helper.make_node("Sub", ["made", "c0"], ["near"], "centre"))
    inputs = inputs_of(model)
    plan = lower(model, host_features())
    made = run_plan(plan, inputs)[0]["y"]
    np.testing.assert_array_equal(made, ((inputs["x"].astype(np.float64) + 1e9) - 1e9).astype(np.float32))
    assert plan.notes == (
        "2 float64 operators from 'node' (Add) on: computed in float64, without kernels, as 'node' (Add) has the "
        "constant 1e+09; float32 takes 2^-126 to 2^24",
    )


@pytest.mark.parametrize("value", [1e-300, 1e300, 2.0**24 + 1])
def test_constants_out_of_the_range_of_float32_keep_float64(value):
    model = between_casts("float64", "Mul", (np.array(value),))
    assert "computed in float64" in lower_graph(model, host_features()).notes[0]


@pytest.mark.parametrize("value", [0.0, 1e-30, -np.inf, 2.0**24])
def test_constants_in_the_range_of_float32_do_not(value):
    model = between_casts("float64", "Max", (np.array(value),))
    assert "computed in float32" in lower_graph(model, host_features()).notes[0]


def test_a_long_sum_keeps_float64():
    model = between_casts("float64", "ReduceSum", shape=(300, 400))
    inputs = inputs_of(model)
    plan = lower(model, host_features())
    assert "'node' (ReduceSum) adds up 120000 terms; in float32 at most 65536" in plan.notes[0]
    wanted = inputs["x"].astype(np.float64).sum()
    np.testing.assert_allclose(run_plan(plan, inputs)[0]["y"].reshape(()), wanted, 1e-7)


def test_integers_that_come_in_keep_float64():
    """2^24 + 1, and its neighbour, are one in float32."""
    model = between_casts("float64", "Sub", (np.array(2.0**23),), shape=(2,))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    inputs = {"x": np.array([2**24, 2**24 + 1])}
    plan = lower(model, host_features())
    assert "'x' is int64, of which float32 does not represent every value" in plan.notes[0]
    np.testing.assert_array_equal(np.diff(run_plan(plan, inputs)[0]["y"]), [1])


def test_float16_of_what_float32_may_make_otherwise_is_refused():
    model = between_casts("float16", "CumSum", (np.array(3),), opset=14)
    with pytest.raises(CompileError, match=r"'node' \(CumSum\) is in float16, .*Cast to float32 in front of it"):
        lower(model, host_features())


@pytest.mark.parametrize("addend", [1e7, -5000.0])
def test_an_addend_beside_which_float32_loses_digits_keeps_float64(addend):
    model = between_casts("float64", "Add", (np.array(addend),))
    model.graph.node.insert(2, helper.make_node("Sub", ["made", "c0"], ["back"], "back"))
    model.graph.node[3].input[0] = "back"
    inputs = inputs_of(model)
    graph = lower_graph(model, host_features())
    (made,) = interpret(graph, inputs).values()
    np.testing.assert_array_equal(made, ((inputs["x"].astype(np.float64) + addend) - addend).astype(np.float32))
    assert graph.notes == [
        "2 float64 operators from 'node' (Add) on: computed in float64, without kernels, as 'node' (Add) adds "
        f"{abs(addend):g}, beside which float32 loses digits; at most 1024"
    ]


@pytest.mark.parametrize(("mean", "stays"), [(1e4, True), (10.0, False)])
def test_a_mean_of_many_standard_deviations_keeps_float64(mean, stays):
    ones = np.ones(3)
    model = between_casts("float64", "BatchNormalization", (ones, ones, mean * ones, ones))
    inputs = {"x": inputs_of(model)["x"] + np.float32(mean)}
    graph = lower_graph(model, host_features())
    assert any("computed in float64" in note for note in graph.notes) == stays
    (made,) = interpret(graph, inputs).values()
    np.testing.assert_allclose(made, wanted_of(model, inputs), rtol=1e-5, atol=1e-5)


def test_parts_that_share_a_constant_alone_are_apart():
    """The one decides, the other does not."""
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], "enter", to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["a", "c"], ["b"], "scale"),
        helper.make_node("Cast", ["b"], ["whole"], "decide", to=TensorProto.INT32),
        helper.make_node("Cast", ["x"], ["d"], "again", to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["d", "c"], ["e"], "other"),
        helper.make_node("Cast", ["e"], ["y"], "leave", to=TensorProto.FLOAT),
    ]
    infos = [helper.make_tensor_value_info(n, k, [4]) for n, k in (("x", 1), ("whole", TensorProto.INT32), ("y", 1))]
    constant = onnx.numpy_helper.from_array(np.array(3.7), "c")
    graph = helper.make_graph(nodes, "two_parts", infos[:1], infos[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    notes = lower_graph(model, host_features()).notes
    assert [note.partition(" on: ")[0] for note in notes] == [
        "1 float64 operator from 'other' (Mul)",
        "1 float64 operator from 'scale' (Mul)",
    ]
    assert "computed in float32" in notes[0]
    assert "'decide' (Cast) converts it to int32" in notes[1]


@pytest.mark.parametrize("dtype", [*KINDS, "float32"])
def test_cast_like_is_a_cast(dtype):
    kinds = {**KINDS, "float32": TensorProto.FLOAT}
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("CastLike", ["half", "like"], ["y"], "node"),
    ]
    infos = [
        helper.make_tensor_value_info(n, k, [4]) for n, k in (("x", 1), ("like", kinds[dtype]), ("y", kinds[dtype]))
    ]
    graph = helper.make_graph(nodes, "cast_like", infos[:2], infos[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    inputs = {"x": np.float32([0.1, 1e-7, -3.3, 7e3]), "like": np.zeros(4, dtype)}
    made = run_plan(lower(model, host_features()), inputs)[0]["y"]
    assert made.dtype == dtype
    np.testing.assert_array_equal(made, inputs["x"].astype(np.float16).astype(dtype))


# ---- rounding to float16 ----

EDGES = [0.0, -0.0, 1.0, 65504.0, 65519.99, 65520.0, 1e30, 2.0**-14, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 6.1e-5, 1e-40]
EDGES += [1 + 2.0**-11, 1 + 3 * 2.0**-11, 2049.0, 2051.0, np.inf, -np.inf, np.nan, 3.0e-8, 2.0**-14 - 2.0**-26]


def rounding_plan(size):
    return lower(between_casts("float16", "Identity", shape=(size,)), host_features())


def test_the_edges_of_float16_are_rounded_as_numpy_does():
    x = np.array(EDGES, np.float32)
    with np.errstate(over="ignore"):
        wanted = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(run_plan(rounding_plan(x.size), {"x": x})[0]["y"], wanted)


def test_every_float16_is_itself():
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    made = run_plan(rounding_plan(x.size), {"x": x})[0]["y"]
    np.testing.assert_array_equal(made, x)
    np.testing.assert_array_equal(np.signbit(made), np.signbit(x))


@given(st.integers(0, 2**32 - 1))
def test_any_bits_are_rounded_as_numpy_does(seed):
    bits = np.random.default_rng(seed).integers(0, 1 << 32, 4096, dtype=np.uint32)
    x = bits.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(run_plan(rounding_plan(4096), {"x": x})[0]["y"], wanted)


# ---- inputs and outputs of the graph ----

NETWORK = """
<ir_version: 10, opset_import: ["": 21]> g ({T}[1,3,16,16] x) => ({T}[1,5] y, {T}[1,8,16,16] z) {{
  c = Conv<pads = [1,1,1,1]>(x, w, b)
  n = BatchNormalization(c, gamma, beta, mean, variance)
  z = Relu(n)
  p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(z)
  q = AveragePool<kernel_shape = [8,8]>(p)
  f = Flatten(q)
  l = LayerNormalization(f, gamma, beta)
  h = Gemm<transB = 1>(l, v, d)
  y = Softmax(h)
}}
"""
SHAPES = {"w": (8, 3, 3, 3), "b": (8,), "gamma": (8,), "beta": (8,), "mean": (8,), "variance": (8,)}
SHAPES |= {"v": (5, 8), "d": (5,)}


def network(dtype):
    model = onnx.parser.parse_model(NETWORK.format(T={"float64": "double"}.get(dtype, dtype)))
    rng = np.random.default_rng(3)
    for name, shape in SHAPES.items():
        values = rng.uniform(0.2, 1.0, shape) if name in ("gamma", "variance") else rng.standard_normal(shape) / 4
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(dtype), name))
    return model


@pytest.mark.parametrize("dtype", KINDS)
def test_a_whole_network_keeps_the_types_of_its_inputs_and_outputs(dtype, tmp_path):
    model = network(dtype)
    report = subbyte.compile(model, tmp_path / "m.subbyte")
    assert report.not_replayed is None
    assert any(f"8 {dtype} operators from" in note and "computed in float32" in note for note in report.notes)
    assert {row.kernel.partition("-")[0] for row in report.rows if row.macs} == {"float"}
    x = np.random.default_rng(4).standard_normal((1, 3, 16, 16)).astype(dtype)
    wide = onnx.ModelProto()
    wide.CopyFrom(network("float64"))
    for tensor, narrow in zip(wide.graph.initializer, model.graph.initializer, strict=True):
        values = onnx.numpy_helper.to_array(narrow).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    exact = onnx.reference.ReferenceEvaluator(wide).run(["y", "z"], {"x": x.astype(np.float64)})
    with subbyte.load(tmp_path / "m.subbyte") as session:
        made = session.run(x)
        with pytest.raises(InputError, match=rf"float32 .*{dtype}"):
            session.run(x.astype(np.float32))
    for got, want in zip((made["y"], made["z"]), exact, strict=True):
        assert got.dtype == dtype
        rounding = UNIT_ROUNDOFF[dtype]  # float16 is rounded once, at the end
        np.testing.assert_allclose(got.astype(np.float64), want, 1.01 * rounding + 1e-6, 1e-6)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_c_program_compares_outputs_of_any_float(dtype, tmp_path):
    x = np.random.default_rng(4).standard_normal((1, 3, 16, 16)).astype(dtype)
    subbyte.compile(network(dtype), tmp_path / "m.subbyte", target="cortex-m4", golden_inputs=[x], keep=tmp_path)
    files = [*MODEL_FILES, *EXAMPLE_FILES]
    command = ["gcc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", *files, "-o", "example", "-lm"]
    folder = tmp_path / "source"
    golden = (folder / "golden.c").read_text()
    head, start, numbers = golden.partition("output_0[")
    other = head + start + numbers.replace("0x3", "0x4")  # another exponent
    for text, said in ((golden, "golden ok"), (other, "golden DIFFERENT")):
        (folder / "golden.c").write_text(text)
        subprocess.run(command, cwd=folder, check=True, timeout=300)
        ran = subprocess.run(["./example"], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert ran.stdout.splitlines()[-1] == said, ran.stdout


def test_many_roundings_to_float16_in_a_row_are_the_file_s_numbers():
    """TVM joins what follows element by element, and takes exponentially long over roundings that it has joined."""
    roundings = 12
    text = "".join(f"a{i} = Mul(v{i}, c) v{i + 1} = Round(a{i}) " for i in range(roundings))
    factor = np.float16(1.3).view(np.uint16)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[4, 6] x) => (float[4, 6] y)
        <float16 c = {{{factor}}}> {{ v0 = Cast<to = 10>(x) {text} y = Cast<to = 1>(v{roundings}) }}"""
    )
    inputs = inputs_of(model)
    inputs["x"] = (inputs["x"] * 40).astype(np.float32)
    (wanted,) = onnx.reference.ReferenceEvaluator(model).run(None, inputs)
    outputs, _ = run_plan(lower(model, host_features()), inputs)
    np.testing.assert_array_equal(outputs["y"], wanted)
