"""Functions of a file: of the dialect by version and body, else inlined; compared with the bodies in the file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import subbyte
from subbyte.dialect.function import all_functions, get
from subbyte.dialect.function_calls import foreign_functions, inline_foreign_functions, normal_form
from subbyte.errors import CompileError, ModelError
from subbyte.export.engine import run_onnx
from subbyte.export.functions import append_functions
from subbyte.export.inspection import inspect
from subbyte.export.onnx_file import load_onnx
from subbyte.tvm_kernels.compiler import CompileReport, compile
from subbyte.tvm_kernels.onnx_model import load_model

X = np.array([[-3.6, -0.5, 0.0, 0.5], [1.5, 2.5, 40.0, -40.0]], np.float32)
HEAD = """<ir_version: 10, opset_import: ["" : 21, "subbyte" : 1, "local" : 1]>
g (float[2, 4] x) => (float[2, 4] y)
<float s = {2}, float low = {-8}, float high = {7}> """
CALL = "y = subbyte.Quantize(x, s, low, high)"
QUANTIZE = '<domain: "subbyte", opset_import: ["" : 21]> Quantize (x, inverse_step, low, high) => (codes) { %s }'
OUR_BODY = "a = Mul(x, inverse_step) b = Round(a) codes = Clip(b, low, high)"
CODES = np.clip(np.rint(X * 2), -8, 7)


def model_of(graph: str, *functions: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + "{" + graph + "}" + " ".join(functions))


def run(model: onnx.ModelProto, folder: Path) -> tuple[np.ndarray, CompileReport]:
    """What the bundle gives for X; the file itself, run by onnxruntime, must give the same.

    (onnx's reference evaluator takes one overload for another and loses attributes that a function hands on.)
    """
    report = compile(model, folder / "m.subbyte")
    with subbyte.load(folder / "m.subbyte") as session:
        found = session.run(X)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(run_onnx(model, X)["y"], found)
    return found, report


def note_of(model: onnx.ModelProto, report: CompileReport, folder: Path) -> str:
    """The one line about functions, which report, its text and `inspect` give alike; `check` reads the file so too."""
    (line,) = report.notes
    assert f"note: {line}" in str(report)
    onnx.save(model, folder / "m.onnx")
    assert inspect(folder / "m.onnx").warnings == (line,)
    assert not foreign_functions(load_onnx(folder / "m.onnx"))
    return line


def operators(model: onnx.ModelProto) -> list[str]:
    """What is left to be lowered."""
    return [node.op_type for node in load_model(model).graph.node]


def test_our_body_under_other_names_of_values_is_ours(tmp_path: Path) -> None:
    model = model_of(CALL, QUANTIZE % OUR_BODY)
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, CODES)
    assert report.notes == ()
    assert operators(model) == ["Quantize"]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("codes = Neg(x)", -X),
        (OUR_BODY.replace("Round", "Floor"), np.clip(np.floor(X * 2), -8, 7)),
        (OUR_BODY.replace("low, high", "high, low"), np.full_like(X, -8)),
        (OUR_BODY.replace("Mul(x, inverse_step)", "Mul(x, x)"), np.clip(np.rint(X * X), -8, 7)),
        (OUR_BODY.replace("codes", "c") + " codes = Identity(x)", X),
    ],
    ids=["another operator", "another rounding", "inputs crossed", "another input", "another output"],
)
def test_another_body_under_our_name_is_computed_as_it_says(body: str, wanted: np.ndarray, tmp_path: Path) -> None:
    model = model_of(CALL, QUANTIZE % body)
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, wanted)
    assert "function subbyte.Quantize: its body is not that of the dialect" in note_of(model, report, tmp_path)
    with pytest.raises(
        CompileError, match=r"subbyte\.Quantize: its body is not that of .* or compile without --strict"
    ):
        compile(model, tmp_path / "m.subbyte", strict=True)


def test_another_table_under_the_name_of_a_decoder(tmp_path: Path) -> None:
    """A decoder of ternary whose codes 1 and 2 stand for +1 and 0."""
    theirs = onnx.FunctionProto()
    theirs.CopyFrom(get("DecodeTernary").proto)
    table = next(node for node in theirs.node if node.output[0] == "table").attribute[0].t
    table.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 1, 0, np.nan], np.float32)))
    model = model_of("w = subbyte.DecodeTernary(packed, shape) y = Mul(x, w)")
    codes = np.array([[0b10_01_00_01], [0b00_00_10_10]], np.uint8)
    for name, array in (("packed", codes), ("shape", np.array([2, 4]))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model.functions.append(theirs)
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, X * np.float32([[1, -1, 1, 0], [0, 0, -1, -1]]))
    assert "subbyte.DecodeTernary: its body is not that of the dialect" in note_of(model, report, tmp_path)
    model.functions[0].CopyFrom(get("DecodeTernary").proto)
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, X * np.float32([[0, -1, 0, 1], [1, 1, -1, -1]]))
    assert report.notes == ("'w' is ternary in the file and float32 here: Mul 'y' has no kernel for it",)


@pytest.mark.parametrize("twice", [False, True])
def test_a_version_of_the_domain_that_is_not_known(tmp_path: Path, twice: bool) -> None:
    """Of a domain that is imported twice, the later version counts."""
    model = model_of(CALL, QUANTIZE % OUR_BODY)
    (entry,) = [entry for entry in model.opset_import if entry.domain == "subbyte"]
    (model.opset_import.add(domain="subbyte") if twice else entry).version = 7
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, CODES)
    assert "subbyte.Quantize: version 7 of the domain is not known" in note_of(model, report, tmp_path)
    with pytest.raises(CompileError, match=r"subbyte\.Quantize: version 7 .* or compile without --strict"):
        compile(model, tmp_path / "m.subbyte", strict=True)


@pytest.mark.parametrize("read", [load_model, load_onnx, inspect])
def test_a_call_without_a_body_is_refused_with_both_versions(read: Callable[[onnx.ModelProto], object]) -> None:
    model = model_of(CALL)
    next(entry for entry in model.opset_import if entry.domain == "subbyte").version = 7
    with pytest.raises(ModelError, match=r"node 'y' calls subbyte\.Quantize of version 7 .* reads versions 1 to 1"):
        read(model)


def test_a_function_of_our_domain_that_we_do_not_have(tmp_path: Path) -> None:
    function = '<domain: "subbyte", opset_import: ["" : 21]> Frob (x) => (y) { y = Neg(x) }'
    model = model_of("y = subbyte.Frob(x)", function)
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, -X)
    assert "subbyte.Frob: the dialect has no function of that name" in note_of(model, report, tmp_path)


def test_an_overload_is_another_function(tmp_path: Path) -> None:
    graph = "q = subbyte.Quantize(x, s, low, high) y = subbyte.Quantize:two(q, s, low, high)"
    other = QUANTIZE.replace("]>", '], overload: "two">') % "codes = Abs(x)"
    model = model_of(graph, QUANTIZE % OUR_BODY, other)
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, np.abs(CODES))
    assert "function subbyte.Quantize:two: its body is not that of the dialect" in note_of(model, report, tmp_path)
    assert operators(model) == ["Quantize", "Abs"]


def test_a_call_that_leaves_inputs_out(tmp_path: Path) -> None:
    """Clip without a lower bound; beside it a whole call, which stays ours."""
    graph = "a = subbyte.Quantize(x, s, , high) b = subbyte.Quantize(x, s, low, high) y = Sub(a, b)"
    model = model_of(graph, QUANTIZE % OUR_BODY)
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, np.minimum(np.rint(X * 2), 7) - CODES)
    assert "a call omits inputs" in note_of(model, report, tmp_path)
    assert operators(model) == ["Mul", "Round", "Clip", "Quantize", "Sub"]


def test_functions_that_call_functions_and_pass_attributes_on(tmp_path: Path) -> None:
    inner = """<domain: "local", opset_import: ["" : 21]>
        Leak <alpha> (x) => (y) { y = LeakyRelu <alpha: float = @alpha> (x) }"""
    outer = """<domain: "local", opset_import: ["" : 21, "subbyte" : 1, "local" : 1]>
        Whole <slope> (x, s, low, high) => (y) {
            a = local.Leak <alpha: float = @slope> (x)
            y = subbyte.Quantize(a, s, low, high)
        }"""
    model = model_of("y = local.Whole <slope = 0.25> (x, s, low, high)", QUANTIZE % OUR_BODY, inner, outer)
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, np.clip(np.rint(np.where(X < 0, X / 4, X) * 2), -8, 7))
    assert report.notes == ()
    assert operators(model) == ["LeakyRelu", "Quantize"]


def test_a_body_with_an_attribute_of_the_call_is_not_ours(tmp_path: Path) -> None:
    body = "c = Constant <value_float: float = @k> () " + OUR_BODY.replace("inverse_step", "c")
    model = model_of(
        "y = subbyte.Quantize <k = 3.0> (x, s, low, high)", QUANTIZE.replace("Quantize (", "Quantize <k> (") % body
    )
    found, report = run(model, tmp_path)
    np.testing.assert_array_equal(found, np.clip(np.rint(X * 3), -8, 7))
    assert "its body is not that of the dialect" in note_of(model, report, tmp_path)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
@pytest.mark.parametrize("read", [load_model, inspect, inline_foreign_functions])
def test_no_functions_in_the_standard_domain(read: Callable[[onnx.ModelProto], object], domain: str) -> None:
    function = f'<domain: "{domain}", opset_import: ["" : 21]> Relu (x) => (y) {{ y = Neg(x) }}'
    with pytest.raises(ModelError, match=r"a function 'Relu' in the standard domain.*to another domain"):
        read(model_of("y = Relu(x)", function))


def test_a_function_of_another_opset_is_inlined_where_its_operators_are_the_same(tmp_path: Path) -> None:
    function = '<domain: "local", opset_import: ["" : %d]> f (x) => (y) { y = %s(x) }'
    found, _ = run(model_of("y = local.f(x)", function % (15, "Abs")), tmp_path)
    np.testing.assert_array_equal(found, np.abs(X))
    with pytest.raises(ModelError, match=r"local\.f has opset 11, .* opset 21, in which Softmax has another"):
        inline_foreign_functions(model_of("y = local.f(x)", function % (11, "Softmax")))


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        ("y = subbyte.Quantize(x, u, low, high)", "2, 4"),
        ("y = subbyte.Quantize(x, s, lowest, high)", "2, 4"),
        ("y = subbyte.Binarize(x, x2)", "2, 4"),
        ("y = subbyte.Binarize(x, thresholds)", "3, 2, 4"),
        ("p, y = subbyte.QuantizePerToken(x2)", "2, 1"),
    ],
    ids=["step of run time", "16 bits", "threshold of run time", "thresholds of more axes", "steps alone"],
)
def test_a_call_that_no_kernel_serves_is_computed_by_its_body(call: str, shape: str, tmp_path: Path) -> None:
    thresholds = ", ".join(map(str, np.linspace(-4, 4, 24)))
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21, "subbyte" : 1]> g (float[2, 4] x) => (float[{shape}] z)
        <float s = {{2}}, float low = {{-8}}, float lowest = {{-3000}}, float high = {{7}},
         float[3, 2, 4] thresholds = {{{thresholds}}}>
        {{ x2 = Mul(x, s) u = ReduceMax <keepdims = 0> (x2) {call} n = Neg(y) z = Neg(n) }}"""
    )
    append_functions(model)
    compile(model, tmp_path / "m.subbyte")
    with subbyte.load(tmp_path / "m.subbyte") as session:
        np.testing.assert_array_equal(session.run(X), run_onnx(model, X)["z"])


# ---- bodies ----


@pytest.mark.parametrize("name", [function.name for function in all_functions()])
def test_a_body_survives_what_tools_do_to_it(name: str) -> None:
    """Values renamed, constants stored otherwise, defaults left out, documentation dropped; no operator can be lost."""
    ours = get(name).proto
    other = onnx.FunctionProto()
    other.CopyFrom(ours)
    other.doc_string = ""
    new = {value: f"v{i}" for i, value in enumerate([*ours.input, *(o for node in ours.node for o in node.output)])}
    for values in (other.input, other.output, *(part for node in other.node for part in (node.input, node.output))):
        renamed = [new[value] for value in values]
        del values[:]
        values.extend(renamed)
    for node in other.node:
        node.name = f"n_{node.output[0]}"
        if node.op_type == "Constant":
            node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(node.attribute[0].t)))
        if node.op_type == "Flatten":
            del node.attribute[:]  # axis 1 is the default
    other.opset_import[0].domain = "ai.onnx"
    assert normal_form(other) == normal_form(ours)
    for index in range(len(ours.node)):
        lacking = onnx.FunctionProto()
        lacking.CopyFrom(ours)
        del lacking.node[index]
        assert normal_form(lacking) != normal_form(ours)


# Version 1 of the domain, as files hold it: name, start of the SHA-256 of its normal form.
RELEASED = """
    Quantize fcc5cfb6 QuantizePerToken 2683a320 Binarize 926ac98b DecodeBinary a6964627 DecodeInt2 16af12ed
    DecodeInt3 fe4f9ec2 DecodeInt4 353cbd03 DecodeInt5 93a1bf6b DecodeInt6 8cbcfff3 DecodeInt7 e7b53aa5
    DecodeInt8 9507e9f9 DecodeUint2 348aef88 DecodeUint3 f81f5f9e DecodeUint4 985ba901 DecodeUint5 3ae34d3b
    DecodeUint6 9dac0821 DecodeUint7 6319bff0 DecodeUint8 f3d6926f DecodePow2_2 f9e5ced9 DecodePow2_3 59819638
    DecodePow2_4 a8cda4c6 DecodePow2_5 c728c1a5 DecodePow2_2n 8153749d DecodePow2_3n 6f7a23e7 DecodePow2_4n 9454d196
    DecodePow2_5n cfa54ad4 DecodeTernary 918d73b3 DequantizeBinary e5aea883 DequantizeInt2 a42e180b
    DequantizeInt3 64e94cba DequantizeInt4 77cd2c62 DequantizeInt5 ed71133b DequantizeInt6 13812d86
    DequantizeInt7 ef38ef23 DequantizeInt8 9ff56625 DequantizeUint2 d48ffb1d DequantizeUint3 d160bae6
    DequantizeUint4 42d474c4 DequantizeUint5 2b21f72a DequantizeUint6 5cc8699d DequantizeUint7 76476ea2
    DequantizeUint8 02b5d378 DequantizePow2_2 c3627353 DequantizePow2_3 71483c51 DequantizePow2_4 e13418b7
    DequantizePow2_5 727dd2c7 DequantizePow2_2n 57cee774 DequantizePow2_3n f41dcfbc DequantizePow2_4n 4a5fe80a
    DequantizePow2_5n 6e2cf01c DequantizeTernary d4adff84
"""


@pytest.mark.parametrize(("name", "digest"), re.findall(r"(\w+) (\w{8})\b", RELEASED))
def test_a_released_body_is_known_for_ever(name: str, digest: str) -> None:
    known = [hashlib.sha256(repr(normal_form(body)).encode()).hexdigest() for body in get(name).bodies(1)]
    assert digest in [found[:8] for found in known]
