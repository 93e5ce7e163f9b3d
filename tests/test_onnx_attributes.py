"""What ONNX does not check of attributes is refused when a file is loaded: of some, its inference ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from subbyte.errors import ModelError
from subbyte.onnx_files.attributes import check_attributes
from subbyte.tvm_kernels.onnx_model import load_model
from subbyte.tvm_kernels.read_graph import read_graph

FUNCTION = '<domain: "own", opset_import: ["" : 21]>'


def model(text: str, function: str = "") -> onnx.ModelProto:
    head = '<ir_version: 10, opset_import: ["" : 21, "own" : 1]>'
    return onnx.parser.parse_model(f"{head} g {text} {FUNCTION + function if function else ''}")


FATAL = {
    "too few parts": (
        "(float[4] x) => (float[a] y, float[b] z) { y, z = Split <num_outputs = 1> (x) }",
        "",
        "num_outputs is 1, expected 2, as many as it has outputs",
    ),
    "no part": ("(float[4] x) => (float[a] y) { y = Split <num_outputs = 0> (x) }", "", "num_outputs is 0"),
    "in a function": (
        "(float[4] x) => (float[a] y, float[b] z) { y, z = own.cut(x) }",
        "cut (x) => (y, z) { y, z = Split <num_outputs = 1> (x) }",
        "num_outputs is 1",
    ),
    "parts by a parameter": (
        "(float[4] x) => (float[a] y, float[b] z) { y, z = own.cut <n = 1> (x) }",
        "cut <n> (x) => (y, z) { y, z = Split <num_outputs: int = @n> (x) }",
        "num_outputs is the parameter 'n' of a function",
    ),
    "batch below 0": (
        "(float[1,2] x, int64[3,1,3,3,1] i) => (float[a] y) { y = GatherND <batch_dims = -2> (x, i) }",
        "",
        "batch_dims is -2, expected 0 or more",
    ),
    "axis of 33 bits": (
        "(float x, float s) => (float y, float m) { y, m = LayerNormalization <axis = 2147483648> (x, s) }",
        "",
        "axis is 2147483648, expected an axis of its input",
    ),
    "axis by a parameter": (
        "(float x, float s) => (float y, float m) { y, m = own.norm <n = 9223372036854775807> (x, s) }",
        "norm <n> (x, s) => (y, m) { y, m = LayerNormalization <axis: int = @n> (x, s) }",
        "hands 9223372036854775807 as 'n' to a function",
    ),
}


@pytest.mark.parametrize("name", FATAL)
def test_what_ends_the_process_in_shape_inference_is_refused_before(name: str, tmp_path: Path) -> None:
    text, function, words = FATAL[name]
    path = tmp_path / "m.onnx"
    onnx.save(model(text, function), path)
    command = [sys.executable, "-m", "subbyte", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("value", [-1, 2, 2**40])
def test_a_flag_is_0_or_1(value: int) -> None:
    grid = "(float[1,1,3,3] x, float[1,2,2,2] i) => (float[1,1,2,2] y)"
    with pytest.raises(ModelError, match=rf"\(GridSample\): its attribute align_corners is {value}, expected 0 or 1"):
        load_model(model(f"{grid} {{ y = GridSample <align_corners = {value}> (x, i) }}"))
    for right in (0, 1):
        load_model(model(f"{grid} {{ y = GridSample <align_corners = {right}> (x, i) }}"))
    by_parameter = model(
        f"{grid} {{ y = own.sample <n = {value}> (x, i) }}",
        "sample <n> (x, i) => (y) { y = GridSample <align_corners: int = @n> (x, i) }",
    )
    with pytest.raises(ModelError, match=f"align_corners is {value}, expected 0 or 1"):
        read_graph(load_model(by_parameter))


SEED = "seed <n> (x) => (y) { y = Neg (x) }"


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("(float[4] x) => (float[a] y, float[b] z) { y, z = Split <num_outputs = 2> (x) }", ""),
        ("(float[2,3,4] x, int64[2,1] i) => (float[2,4] y) { y = GatherND <batch_dims = 1> (x, i) }", ""),
        (
            "(float[2,3] x, float[3] s) => (float[2,3] y) { y = own.norm <n = 1> (x, s) }",
            "norm <n> (x, s) => (y) { y = LayerNormalization <axis: int = @n> (x, s) }",
        ),
        # an integer that is handed to a function is its own, unless it may become an axis
        ("(float[4] x) => (float[4] y) { y = own.seed <n = 9223372036854775807> (x) }", SEED),
    ],
)
def test_what_is_valid_is_taken(text: str, function: str) -> None:
    check_attributes(model(text, function))
    load_model(model(text, function))
