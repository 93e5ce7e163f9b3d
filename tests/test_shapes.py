"""Shapes follow through what is computed of shapes; a file at which ONNX's inference ends the process is inspected."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import onnx
import pytest

from subbyte.dialect.graph import view
from subbyte.dialect.shapes import with_shapes

HEAD = '<ir_version: 10, opset_import: ["" : 21, "own" : 1]>'
FUNCTION = '<domain: "own", opset_import: ["" : 21]>'


def reshaped(step: str, functions: str = "", node: str = "t = Slice(s, first, last, zero, st)") -> onnx.ModelProto:
    """x [2, 3] reshaped to what a Slice of its shape gives."""
    text = f"""{HEAD} g (float[2,3] x) => (float[a,b] y)
    <int64[1] first={{1}}, int64[1] last={{-9}}, int64[1] far={{9}}, int64[1] zero={{0}},
     int64[1] many={{4294967296}} {step}>
    {{ s = Shape(x) {node} y = Reshape(x, t) }} {functions}"""
    return onnx.parser.parse_model(text)


def test_shapes_follow_through_a_slice_with_a_step() -> None:
    for model in (
        reshaped(", int64[1] st={-1}"),
        reshaped("", node="st = Constant <value_ints: ints = [-1]> () t = Slice(s, first, last, zero, st)"),
        reshaped("", node="st = Constant <value = int64[1] {-1}> () t = Slice(s, first, last, zero, st)"),
    ):
        dims = with_shapes(model, strict=True).graph.output[0].type.tensor_type.shape.dim
        assert [dim.dim_value for dim in dims] == [3, 2]


UP = "t = Slice(s, first, far, zero, st)"
BODY = "{ t = Slice(s, first, far, zero, st) }"
HOSTILE = {
    "constant": reshaped(", int64[1] st={9223372036854775807}", node=UP),
    "least": reshaped(", int64[1] st={-9223372036854775808}"),
    "33 bits": reshaped(", int64[1] st={2147483648}", node=UP),
    "computed": reshaped("", node=f"st = Mul(many, zero) {UP}"),
    "handed to a function": reshaped(
        ", int64[1] st={1}",
        f"{FUNCTION} cut (s, first, far, zero, st) => (t) {BODY}",
        "t = own.cut(s, first, far, zero, many)",
    ),
    "in a function": reshaped(
        "",
        f"{FUNCTION} cut (s, first, far, zero) => (t) {{ st = Constant <value = int64[1] {{{1 << 32}}}> () {BODY[1:]}",
        "t = own.cut(s, first, far, zero)",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_step_of_many_bits_neither_hangs_nor_crashes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(HOSTILE[name], path)
    command = [sys.executable, "-m", "subbyte", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr


def doubled(node: str, last: str, functions: str = "", constant: str = ", int64[4] c={1, 2, 3, 4}") -> onnx.ModelProto:
    """40 vectors, each joined with itself."""
    names = ["c", *(f"v{i}" for i in range(40))]
    rows = " ".join(node.format(made, of) for of, made in pairwise(names))
    text = f"""{HEAD} g (float[2,3] x) => (float[a,b] y)
    <int64[1] first={{0}}, int64[1] last={{1}}, int64[1] zero={{0}}{constant}>
    {{ {last} {rows} e = Slice(v39, first, last, zero) r = Cast<to=1>(e) y = Add(x, r) }} {functions}"""
    return onnx.parser.parse_model(text)


JOIN = f"{FUNCTION} twice (a) => (b) {{ b = Concat<axis=0>(a, a) }}"
DOUBLED = {
    "constant": doubled("{0} = Concat<axis=0>({1}, {1})", ""),
    "last axis": doubled("{0} = Concat<axis=-1>({1}, {1})", ""),
    "a Constant": doubled("{0} = Concat<axis=0>({1}, {1})", "c = Constant <value_ints: ints = [1, 2]> ()", constant=""),
    "shape": doubled("{0} = Concat<axis=0>({1}, {1})", "c = Shape(x)", constant=""),
    "in a function": doubled("{0} = own.twice({1})", "", JOIN),
}


@pytest.mark.parametrize("strict", [True, False], ids=["inspect", "check and bench"])
@pytest.mark.parametrize("name", DOUBLED)
def test_vectors_that_double_are_not_followed(name: str, strict: bool) -> None:
    """2^40 elements would take all memory; the shapes that do not hang on them are there."""
    if strict:
        types = {value.name: value.type for value in with_shapes(DOUBLED[name], strict=True).graph.value_info}
    else:
        types = view(DOUBLED[name]).types
    shapes = {value: [dim.dim_value for dim in kind.tensor_type.shape.dim] for value, kind in types.items()}
    assert shapes["e"] == [1]
    assert shapes["v39"][0] >= 2**40


def test_shapes_follow_through_many_concats_of_few_elements() -> None:
    rows = " ".join(f"v{i} = Concat<axis=0>(first, first) w{i} = Slice(v{i}, first, last, first)" for i in range(1000))
    text = f"""{HEAD} g (float[2,3] x) => (float[a,b] y) <int64[1] first={{0}}, int64[1] last={{1}}>
    {{ {rows} s = Shape(x) t = Slice(s, first, last, w999) u = Concat<axis=0>(t, last) f = Mul(x, x)
       m = ReduceMax<keepdims=1>(f) h = Expand(m, u) y = Identity(h) }}"""
    dims = with_shapes(onnx.parser.parse_model(text), strict=True).graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 1]
