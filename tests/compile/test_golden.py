"""Golden inputs that a model accepts, golden outputs of an engine that is exact, and what is said without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from this_machine import needs_x86_64

import subbyte
from subbyte.cli import main
from subbyte.dialect.example_inputs import random_inputs
from subbyte.errors import ModelError, UsageError
from subbyte.onnx_files.saturation import onnxruntime_saturates
from subbyte.runtime.golden import golden_inputs, golden_outputs
from subbyte.runtime.host import cpu_features
from subbyte.tvm_kernels import reference_engine
from subbyte.tvm_kernels.foreign_reference import OPERATORS
from subbyte.tvm_kernels.golden_inputs import golden_ranges
from subbyte.tvm_kernels.plan import Tensor

Array = npt.NDArray[Any]
QONNX = "qonnx.custom_op.general"


def model(text: str, tensors: dict[str, Array] | None = None, domains: str = "") -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17{domains}]>\n{text}')
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (tensors or {}).items())
    return made


TABLE = {"w": np.arange(20, dtype=np.float32).reshape(5, 4)}


# ---- inputs ----


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Gather(w, i)", (0, 4)),
        ("y = Gather<axis = 1>(w, i)", (0, 3)),
        ("a = Cast<to = 7>(i) b = Unsqueeze(a, zero) y = Gather(w, b)", (0, 4)),
        ("a = Add(i, two) y = Gather(w, a)", (0, 2)),
        ("a = Sub(i, two) y = Gather(w, a)", (2, 6)),
        ("a = Sub(two, i) y = Gather(w, a)", (0, 2)),
        ("a = Mul(i, two) y = Gather(w, a)", (0, 2)),
        ("a = Div(i, two) y = Gather(w, a)", (0, 8)),
        ("a = Concat<axis = 0>(i, i) y = Gather(w, a)", (0, 4)),
        ("a = Clip(i, nought, two) y = Gather(w, a)", None),
        ("a = Mod(i, two) y = Gather(w, a)", None),
        ("c = Less(i, two) a = Where(c, i, two) y = Gather(w, a)", (0, 4)),
        ("a = Add(i, minus) y = Gather(w, a)", (10, 14)),
        ("r = Unsqueeze(i, one) y = GatherND(w, r)", (0, 4)),
        ("r = Reshape(i, square) y = GatherElements<axis = 1>(w, r)", (0, 3)),
        ("y = OneHot(i, six, ends)", (0, 5)),
        ("a = ReduceSum<keepdims = 0>(i) y = Gather(w, a)", (0, 1)),  # four terms, together 4 at most
        ("r = Reshape(i, square) a = ReduceSum(r, one) y = Gather(w, a)", (0, 2)),
        ("a = CumSum(i, nought) y = Gather(w, a)", (0, 1)),
        ("m = Neg(i) a = Add(m, two) y = Gather(w, a)", (0, 2)),
        ("a = Add(i, two) y = Identity(a)", None),
    ],
)
def test_an_index_is_followed_to_the_input_that_it_is_made_of(body: str, expected: tuple[int, int] | None) -> None:
    integers = {"two": 2, "nought": 0, "six": 6, "minus": -10}
    tensors = TABLE | {name: np.array(value, np.int64) for name, value in integers.items()}
    tensors |= {"zero": np.array([0]), "one": np.array([1]), "square": np.array([2, 2])}
    tensors["ends"] = np.array([0, 1], np.float32)
    used = {name: array for name, array in tensors.items() if f"{name}," in body.replace(")", ",")}
    made = model(f"g (int64[4] i) => (float y) {{ {body} }}", used)
    assert golden_ranges(made) == ({} if expected is None else {"i": expected})


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(x, i)", (0, 95)),  # elements of [2, 3, 4, 4]
        ("y = RoiAlign<output_height = 2, output_width = 2>(x, rois, i)", (0, 1)),
    ],
)
def test_indices_of_whole_outputs_and_of_images(text: str, images: tuple[int, int]) -> None:
    shape = "2, 3, 2, 2" if "MaxUnpool" in text else "4"
    made = model(
        f"g (float[2, 3, 2, 2] x, float[4, 4] rois, int64[{shape}] i) => (float[a, b, c, d] y) {{ {text} }}", {}
    )
    assert golden_ranges(made) == {"i": images}


@pytest.mark.parametrize(
    ("text", "opset", "high"),
    [
        ('y = NegativeLogLikelihoodLoss<reduction = "none">(x, i)', 17, 2),
        ('y = SoftmaxCrossEntropyLoss<reduction = "none">(x, i)', 17, 2),
        ("y = RotaryEmbedding(x, table, table, i)", 23, 4),
    ],
)
def test_indices_that_the_body_of_a_schema_reads(text: str, opset: int, high: int, tmp_path: Path) -> None:
    rotary = "Rotary" in text
    x, i, y = ("4, 2, 3, 4", "4, 3", "4, 2, 3, 4") if rotary else ("40, 3", "40", "40")
    made = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\ng (float[{x}] x, int64[{i}] i) => (float[{y}] y) {{ {text} }}'
    )
    made.graph.initializer.append(
        numpy_helper.from_array(np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2), "table")
    )
    assert golden_ranges(made) == {"i": (0, high)}
    subbyte.compile(made, tmp_path / "m.subbyte")  # which runs the golden inputs


def test_two_tables_leave_the_indices_of_both() -> None:
    made = model("g (int64[3] i) => (float a, float b) { a = Gather(w, i) b = Gather<axis = 1>(w, i) }", TABLE)
    assert golden_ranges(made) == {"i": (0, 3)}


def test_random_golden_inputs_name_rows_of_their_table(tmp_path: Path) -> None:
    text = "g (int64[40] i, float[40, 4] x) => (float[40, 4] y) { a = Gather(w, i) y = Add(a, x) }"
    report = subbyte.compile(model(text, TABLE), tmp_path / "m.subbyte")
    assert report.not_replayed is None
    with subbyte.load(tmp_path / "m.subbyte") as session:
        indices, values = golden_inputs(session.bundle)
        np.testing.assert_array_equal(session.run([indices, values]), TABLE["w"][indices] + values)
    assert set(indices.tolist()) == set(range(5))


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255), ("int32", 0, 127)])
def test_random_codes_are_of_their_whole_range(dtype: str, low: int, high: int) -> None:
    (codes,) = random_inputs([Tensor("x", dtype, (100, 100))])
    assert (codes.dtype, int(codes.min()), int(codes.max())) == (dtype, low, high)
    (rows,) = random_inputs([Tensor("x", dtype, (100,))], ranges={"x": (0, 4)})
    assert set(rows.tolist()) == set(range(5))


def test_golden_inputs_come_by_name_or_from_one_file(tmp_path: Path) -> None:
    made = model("g (float[2] a, float[2] b) => (float[2] y) { y = Sub(a, b) }")
    arrays = {"b": np.array([1, 2], np.float32), "a": np.array([5, 5], np.float32)}
    np.savez(tmp_path / "x.npz", **arrays)
    for given in (arrays, tmp_path / "x.npz", [arrays["a"], arrays["b"]]):
        subbyte.compile(made, tmp_path / "m.subbyte", golden_inputs=given, keep=tmp_path / "kept")
        np.testing.assert_array_equal(np.load(tmp_path / "kept" / "golden" / "output_0.npy"), [4, 3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": np.zeros(2, np.float32)}, "golden input 'b' is missing"),
        (
            {"a": np.zeros(2, np.float32), "c": np.zeros(2, np.float32)},
            "'c' is not an input of the model; it has: a, b",
        ),
        ({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}, r"golden input 'b' is float32 \[3\]"),
        (
            [np.zeros(2, np.float32), np.array([1, np.nan], np.float32)],
            "'b': 1 of its 2 elements are NaN.*; give",
        ),
    ],
)
def test_golden_inputs_of_wrong_names_shapes_or_values_are_refused(given: Any, message: str, tmp_path: Path) -> None:
    made = model("g (float[2] a, float[2] b) => (float[2] y) { y = Sub(a, b) }")
    with pytest.raises(UsageError, match=message):
        subbyte.compile(made, tmp_path / "m.subbyte", golden_inputs=given)


def test_golden_inputs_may_be_infinite(tmp_path: Path) -> None:
    made = model("g (float[3] a) => (float[3] y) { b = Relu(a) y = Neg(b) }")
    x = np.array([-np.inf, np.inf, 2], np.float32)
    assert subbyte.compile(made, tmp_path / "m.subbyte", golden_inputs=x).not_replayed is None
    with subbyte.load(tmp_path / "m.subbyte") as session:
        np.testing.assert_array_equal(golden_outputs(session.bundle)[0], [0, -np.inf, -2])


def test_inputs_that_the_reference_refuses_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"given golden inputs 'i' int64 \[4\] in 9 .. 9.*--golden-inputs FILE.npz"):
        subbyte.compile(
            model("g (int64[4] i) => (float[4, 4] y) { y = Gather(w, i) }", TABLE),
            tmp_path / "m.subbyte",
            golden_inputs=[np.full(4, 9)],
        )
    assert list(tmp_path.iterdir()) == []


# ---- outputs ----


def evaluated(made: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    (found,) = ReferenceEvaluator(made, new_ops=list(OPERATORS)).run(None, feeds)
    return np.asarray(found)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("ROUND", [-2, -2, 0, 0, 2, 2, 3]),
        ("HALF_EVEN", [-2, -2, 0, 0, 2, 2, 3]),
        ("CEIL", [-2, -1, 0, 1, 2, 3, 3]),
        ("FLOOR", [-3, -2, -1, 0, 1, 2, 2]),
        ("ROUND_TO_ZERO", [-2, -1, 0, 0, 1, 2, 2]),
        ("DOWN", [-2, -1, 0, 0, 1, 2, 2]),
        ("UP", [-3, -2, -1, 1, 2, 3, 3]),
        ("HALF_UP", [-3, -2, -1, 1, 2, 3, 3]),
        ("HALF_DOWN", [-2, -1, 0, 0, 1, 2, 3]),
    ],
)
def test_qonnx_rounds_as_its_mode_says(mode: str, expected: list[int]) -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.75], np.float32)
    made = model(
        f'g (float[7] x) => (y) {{ y = {QONNX}.Quant<rounding_mode = "{mode}">(x, s, z, b) }}',
        {"s": np.float32(1), "z": np.float32(0), "b": np.float32(8)},
        f', "{QONNX}" : 1',
    )
    np.testing.assert_array_equal(evaluated(made, {"x": x}), expected)


@pytest.mark.parametrize(
    ("signed", "narrow", "bits", "zero", "expected"),
    [
        (1, 0, 4, 0, [-8, -0.5, 7]),
        (1, 1, 4, 0, [-7, -0.5, 7]),
        (0, 0, 4, 0, [0, 0, 15]),
        (0, 1, 4, 0, [0, 0, 14]),
        (0, 0, 4, 3, [-3, -0.5, 12]),
        (1, 0, 1, 0, [-1, -1, 1]),
        (1, 1, 1, 0, [-1, -1, 1]),
        (0, 0, 1, 0, [0, 0, 1]),
    ],
)
def test_qonnx_clips_to_the_range_of_its_attributes(
    signed: int, narrow: int, bits: int, zero: int, expected: list[float]
) -> None:
    """Codes of step 0.5: expected values are (code - zero) of 0.5, but -0.5 which is the code before it."""
    made = model(
        f"g (float[3] x) => (y) {{ y = {QONNX}.Quant<signed = {signed}, narrow = {narrow}>(x, s, z, b) }}",
        {"s": np.float32(0.5), "z": np.float32(zero), "b": np.float32(bits)},
        f', "{QONNX}" : 1',
    )
    levels = [2 * value if value == -0.5 else value for value in expected]
    x = np.array([-50, -0.5, 50], np.float32)
    np.testing.assert_array_equal(evaluated(made, {"x": x}), np.array(levels, np.float32) * np.float32(0.5))


def test_qonnx_scales_by_channel_and_a_sign_keeps_its_scale(tmp_path: Path) -> None:
    scale = np.array([[0.5, 2.0]], np.float32)
    made = model(
        f"g (float[2, 2] x) => (y) {{ a = {QONNX}.Quant(x, s, z, b) y = {QONNX}.BipolarQuant(a, t) }}",
        {"s": scale, "z": np.float32(0), "b": np.float32(4), "t": np.float32(0.25)},
        f', "{QONNX}" : 1',
    )
    x = np.array([[0.6, -0.9], [-0.3, -3.0]], np.float32)  # codes 1, -0; -1, -2
    np.testing.assert_array_equal(evaluated(made, {"x": x}), [[0.25, 0.25], [-0.25, -0.25]])


def nbits(level: int) -> tuple[onnx.ModelProto, Array, Array]:
    """MatMulNBits of 4 bits with zero points, an input, and the product in float64."""
    rng = np.random.default_rng(0)
    depth, columns, block = 80, 6, 32
    blocks = -(-depth // block)
    codes = rng.integers(0, 16, (columns, blocks, block)).astype(np.uint8)
    scales = rng.uniform(0.1, 1, (columns, blocks)).astype(np.float32)
    zeros = rng.integers(0, 16, (columns, blocks + 1)).astype(np.uint8)
    tensors = {"b": codes[..., ::2] | codes[..., 1::2] << 4, "s": scales.reshape(-1)}
    tensors["z"] = (zeros[:, ::2] | zeros[:, 1::2] << 4).reshape(-1)
    made = model(
        f"g (float[3, {depth}] x) => (float[3, {columns}] y) {{ y = com.microsoft.MatMulNBits"
        f"<K = {depth}, N = {columns}, bits = 4, block_size = {block}, accuracy_level = {level}>(x, b, s, z) }}",
        tensors,
        ', "com.microsoft" : 1',
    )
    weights = (codes - zeros[:, :blocks, None].astype(np.float64)) * scales[:, :, None]
    x = rng.standard_normal((3, depth)).astype(np.float32)
    return made, x, x.astype(np.float64) @ weights.reshape(columns, -1)[:, :depth].T


def test_weights_by_blocks_are_multiplied_as_their_definition_says() -> None:
    made, x, expected = nbits(0)
    np.testing.assert_allclose(evaluated(made, {"x": x}), expected, rtol=1e-4, atol=1e-4)
    (found,), engine = reference_engine.run(made, ["y"], {"x": x})
    assert engine.startswith("onnxruntime")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_int8_activations_of_onnxruntime_are_no_reference() -> None:
    made, x, expected = nbits(4)
    (found,), engine = reference_engine.run(made, ["y"], {"x": x})
    assert engine.startswith("onnx.reference")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("called", ["com.microsoft.Gelu(x)", f"{QONNX}.BipolarQuant(x, x)", "com.microsoft.Other(x)"])
def test_a_body_in_the_file_comes_before_the_kernel_of_an_engine(called: str, tmp_path: Path) -> None:
    """onnxruntime would compute its own Gelu, onnx's evaluator our BipolarQuant."""
    domain, _, call = called.rpartition(".")
    name, inputs = call[:-1].split("(")
    made = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17, "{domain}" : 1]>
        g (float[6] x) => (float[6] y) {{ y = {called} }}
        <domain: "{domain}", opset_import: ["" : 17]>
        {name} ({", ".join(f"v{i}" for i in range(inputs.count("x")))}) => (w) {{ w = Neg(v0) }}""")
    x = np.linspace(-2, 2, 6).astype(np.float32)
    (found,), _ = reference_engine.run(made, ["y"], {"x": x})
    np.testing.assert_array_equal(found, -x)
    assert subbyte.compile(made, tmp_path / "m.subbyte", golden_inputs=[x]).not_replayed is None
    with subbyte.load(tmp_path / "m.subbyte") as session:
        np.testing.assert_array_equal(session.run(x), -x)


INTEGERS = {
    "MatMulInteger": "g (uint8[3, 64] x) => (int32[3, 8] y) { y = MatMulInteger(x, w) }",
    "ConvInteger": "g (uint8[1, 3, 6, 6] x) => (int32[1, 2, 4, 4] y) { y = ConvInteger(x, v, z) }",
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_products_are_exact_whoever_computes_them(name: str) -> None:
    rng = np.random.default_rng(1)
    tensors = {
        "MatMulInteger": {"w": rng.integers(-128, 128, (64, 8)).astype(np.int8)},
        "ConvInteger": {"v": np.full((2, 3, 3, 3), 127, np.int8), "z": np.uint8(1)},
    }[name]
    made = model(INTEGERS[name], tensors)
    x = np.full([d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim], 255, np.uint8)
    (found,), engine = reference_engine.run(made, ["y"], {"x": x})
    assert engine.startswith("onnx.reference" if onnxruntime_saturates() else "onnxruntime")
    wide = np.int64(255) * tensors["w"].astype(np.int64).sum(0) if "w" in tensors else np.int64(254 * 127 * 27)
    np.testing.assert_array_equal(found, np.broadcast_to(wide, found.shape))
    np.testing.assert_array_equal(evaluated(made, {"x": x}), found)


def test_where_onnxruntime_saturates_its_products_are_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice alone, as on a CPU without VNNI; elsewhere the probe finds none."""
    made = model(INTEGERS["MatMulInteger"], {"w": np.ones((64, 8), np.int8)})
    monkeypatch.setattr(reference_engine, "onnxruntime_saturates", lambda: True)
    assert "saturates" in (reference_engine.inexact_in_onnxruntime(made) or "")
    monkeypatch.setattr(reference_engine, "onnxruntime_saturates", lambda: False)
    assert reference_engine.inexact_in_onnxruntime(made) is None


HALVES = "g (float[64] x) => (float[64] y) { h = Cast<to = 10>(x) "


def test_float16_is_rounded_after_every_node(tmp_path: Path) -> None:
    """onnxruntime computes the chain in float32 and rounds it once."""
    tensors = {"a": np.float16(0.3), "b": np.float16(1.7), "c": np.float16(-2.2)}
    text = HALVES + "s = Add(h, a) p = Mul(s, b) d = Sub(p, c) y = Cast<to = 1>(d) }"
    x = (np.random.default_rng(0).standard_normal(64) * 30).astype(np.float32)
    report = subbyte.compile(model(text, tensors), tmp_path / "m.subbyte", golden_inputs=[x])
    assert report.not_replayed is None
    expected = ((x.astype(np.float16) + tensors["a"]) * tensors["b"] - tensors["c"]).astype(np.float32)
    with subbyte.load(tmp_path / "m.subbyte") as session:
        np.testing.assert_array_equal(session.run(x), expected)
        np.testing.assert_array_equal(golden_outputs(session.bundle)[0], expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HALVES + "m = Relu(h) y = Cast<to = 1>(m) }", "Relu computes in float16"),
        (HALVES + "m = Neg(x) t = Identity(h) y = CastLike(t, m) }", "CastLike computes in float16"),
        ("g (float[64] x) => (float[64] y) { h = Cast<to = 16>(x) m = Add(h, h) y = Cast<to = 1>(m) }", "in bfloat16"),
        ("g (float16[64] x) => (float16[64] y) { y = Add(x, x) }", "Add computes in float16"),
        (HALVES + "m = Reshape(h, x) y = Cast<to = 1>(m) }", None),
        (HALVES + "m = Cast<to = 1>(h) y = Relu(m) }", None),
        ("g (float[64] x) => (float[64] y) { y = Relu(x) }", None),
    ],
)
def test_what_computes_in_float16_has_no_reference_in_onnxruntime(text: str, reason: str | None) -> None:
    found = reference_engine.inexact_in_onnxruntime(model(text))
    assert found is None if reason is None else reason in (found or "")


@needs_x86_64
def test_the_probe_finds_what_the_cpu_says() -> None:
    assert onnxruntime_saturates() is not bool(cpu_features(Path("/proc/cpuinfo")) & {"avx512vnni", "avxvnni"})


@pytest.mark.parametrize("opset", [7, 9, 13, 15])
def test_a_batch_norm_of_any_opset_is_that_of_inference(opset: int) -> None:
    rng = np.random.default_rng(2)
    names = ("scale", "bias", "mean", "variance")
    tensors = {name: rng.uniform(0.5, 2, 3).astype(np.float32) for name in names}
    x = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=1e-3)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    wide = {name: array.astype(np.float64).reshape(1, 3, 1, 1) for name, array in tensors.items()}
    expected = wide["scale"] * (x - wide["mean"]) / np.sqrt(wide["variance"] + 1e-3) + wide["bias"]
    np.testing.assert_allclose(evaluated(made, {"x": x}), expected, rtol=1e-5, atol=1e-5)
    (found,), _ = reference_engine.run(made, ["y"], {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_command_line_takes_golden_inputs_and_leaves_the_replay_out(tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "m.subbyte"
    onnx.save(model("g (float[2] a, float[2] b) => (float[2] y) { y = Sub(a, b) }"), path)
    np.savez(tmp_path / "x.npz", a=np.array([5, 5], np.float32), b=np.array([1, 2], np.float32))
    arguments = ["compile", str(path), "-o", str(output), "--golden-inputs", str(tmp_path / "x.npz"), "--no-replay"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "not replayed, asked not to" in done.output
    with subbyte.load(output) as session:
        np.testing.assert_array_equal(golden_inputs(session.bundle)[1], [1, 2])
        assert session.check_golden().exact
