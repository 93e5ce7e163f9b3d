"""A rounding tie may move what a quantizer makes of an inexact float: counted, in Python and C alike."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from unpacked import unpacked

import subbyte
from subbyte.dialect.exactness import RoundingTies
from subbyte.runtime.bundle import open_bundle, write_bundle
from subbyte.tvm_kernels.assembly import assemble
from subbyte.tvm_kernels.emit import Golden, compile_plan
from subbyte.tvm_kernels.golden import golden_tensors
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines import get_target

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
TENSORS = {
    "w": RNG.standard_normal((8, 8)).astype(np.float32),
    "levels": RNG.integers(-3, 4, (8, 8)).astype(np.float32),
    "s": np.float32(0.5),
    "big": np.float32(3.0),
    "z": np.uint8(128),
    "two": np.array([2]),
}
UINT8 = np.array([3, 250], np.uint8)
FLOAT = np.array([2.0, -40.0], np.float32)


def model(body: str, x: str = "float[4, 8] x", y: str = "float[4, 8] y") -> onnx.ModelProto:
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\ng ({x}) => ({y}) {{ {body} }}')
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in TENSORS.items() if n in used)
    return made


@pytest.mark.parametrize(
    ("body", "example", "expected"),
    [
        ("y = QuantizeLinear(x, s, z)", UINT8, 0),  # of an input: one rounding
        ("y = MatMul(x, w)", FLOAT, 0),  # inexact, but nothing rounds it
        ("a = MatMul(x, w) y = QuantizeLinear(a, s, z)", UINT8, 1),
        ("a = MatMul(x, w) b = Round(a) y = Cast<to = 6>(b)", UINT8, 1),
        ("a = Exp(x) b = QuantizeLinear(a, s, z) c = Transpose(b) y = Relu(c)", UINT8, 1),
        ("a = Exp(x) b = QuantizeLinear(a, s, z) y = MatMulInteger(b, z)", UINT8, 13),  # 5% of 250
        ("a = Exp(x) b = QuantizeLinear(a, s, z) y = DequantizeLinear(b, s, z)", FLOAT, 2),  # 5% of 40
        ("a = Exp(x) b = QuantizeLinear(a, big, z) y = DequantizeLinear(b, big, z)", FLOAT, 3),  # a step
        ("a = Exp(x) b = QuantizeLinear(a, s, z) c = DequantizeLinear(b, s, z) y = MatMul(c, w)", FLOAT, 2),
        ("a = Round(x) b = MatMul(a, levels) y = QuantizeLinear(b, s, z)", UINT8, 0),  # sums of integers
        ("a = Exp(x) b = QuantizeLinear(a, s, z) y = ArgMax(b)", UINT8, 0),
        ("a = Exp(x) b = QuantizeLinear(a, s, z) c = Cast<to = 1>(b) y, i = TopK(c, two)", FLOAT, 2),  # 5% of 40
        ("a = Exp(x) v, y = TopK(a, two)", UINT8, 0),
        ("h = Cast<to = 10>(x) a = Exp(h) y = Cast<to = 1>(a)", FLOAT, 2),  # float16: 5% of 40
        ("h = Cast<to = 10>(x) a = Mul(h, h) y = Cast<to = 1>(a)", FLOAT, 0),  # one rounding
    ],
)
def test_what_a_tie_may_move_follows_from_the_graph(body: str, example: Array, expected: float) -> None:
    made = model(body)
    assert RoundingTies(made).allowances({"y": example}) == {"y": expected}
    made.graph.node.reverse()
    assert RoundingTies(made).allowances({"y": example}) == {"y": expected}


@pytest.mark.parametrize(("fraction", "ties"), [(0.5, True), (0.25, False)])
def test_how_far_ties_move_floats_is_measured_behind_the_first_quantizer_too(fraction: float, ties: bool) -> None:
    """Inputs are codes: no move of them crosses a tie. The second quantizer sees values at one, or far from one."""
    tensors = {
        "sx": np.float32(0.03),
        "w1": np.eye(16, dtype=np.float32),
        "b": np.float32(fraction * 0.3),  # of the step of q: 0.03 times multiples of 10, and this part of a step
        "s": np.float32(0.3),
        "z": np.uint8(128),
        "w2": np.full((16, 2), 1.1, np.float32),
    }
    made = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (uint8[4, 16] x) => (float[4, 2] y) { a = DequantizeLinear(x, sx, z) m = MatMul(a, w1) n = Add(m, b)
        q = QuantizeLinear(n, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w2) }""")
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in tensors.items())
    x = (128 + 10 * np.random.default_rng(0).integers(-10, 11, (4, 16))).astype(np.uint8)
    host = get_target("host")
    golden = golden_tensors(made, assemble(lower_graph(made, host.features), host.features), [x])
    (found,) = golden.ties
    one = 0.3 * 1.1  # what one code of q moves y by
    assert found <= RoundingTies(made).allowances({"y": golden.outputs[0]})["y"]
    assert (found >= one) if ties else (0 < found < 1e-2 * one)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("v, y = TopK(x, two)", set()),  # of an input: exact
        ("a = Round(x) v, y = TopK(a, two)", set()),
        ("a = Exp(x) v, y = TopK(a, two)", {"y"}),
        ("a = Exp(x) y = ArgMax(a)", {"y"}),
        ("a = MatMul(x, w) b = QuantizeLinear(a, s, z) y = ArgMax(b)", {"y"}),
    ],
)
def test_places_of_what_is_exact_are_exact(body: str, expected: set[str]) -> None:
    assert RoundingTies(model(body)).indices == expected


@pytest.mark.parametrize(("gap", "expected"), [(0.0, 2.0), (1e-8, 2.0), (0.1, 0.0)])
def test_a_place_moves_where_two_values_are_next_to_each_other(gap: float, expected: float, tmp_path: Path) -> None:
    """As far as it does in some rows when the inputs move."""
    made = model("a = Exp(x) y = ArgMax<axis = 1, keepdims = 0>(a)", "float[64, 8] x", "int64[64] y")
    x = np.zeros((64, 8), np.float32)
    x[:, 3], x[:, 5] = 1.0 + gap, 1.0
    subbyte.compile(made, tmp_path / "m.subbyte", golden_inputs=[x])
    with open_bundle(tmp_path / "m.subbyte") as bundle:
        assert bundle.manifest.golden_ties == (expected,)


CODES = model("a = MatMul(x, w) y = QuantizeLinear(a, s, z)", y="uint8[4, 8] y")


@pytest.mark.parametrize(
    ("differences", "moved", "ok"),
    [([], 0, True), ([1], 1, True), ([1, -1], 2, False), ([2], 0, False)],  # at most one of 32 elements
)
def test_codes_move_by_one_and_are_counted_in_python_and_c(
    differences: list[int], moved: int, ok: bool, tmp_path: Path
) -> None:
    path = tmp_path / "m.subbyte"
    subbyte.compile(CODES, path, keep=tmp_path)
    golden = np.load(tmp_path / "golden" / "output_0.npy")
    shifted = golden.astype(np.int64)
    shifted.reshape(-1)[: len(differences)] += np.array(differences, np.int64)
    with open_bundle(path) as bundle:
        assert bundle.manifest.golden_ties == (1.0,)
        members = {name: bundle.read(name) for name in bundle.members if name != "manifest.json"}
        manifest = {key: value for key, value in bundle.raw.items() if key not in ("schema", "members")}
        x = np.load(tmp_path / "golden" / "input_0.npy")
    np.save(tmp_path / "shifted.npy", shifted.astype(np.uint8))
    members["golden/output_0.npy"] = (tmp_path / "shifted.npy").read_bytes()
    write_bundle(path, manifest, members)
    with subbyte.load(path, threads=1) as session:
        report = session.check_golden()
    assert (report.ok, report.moved, report.differing) == (ok, moved, len(differences))

    host = get_target("host")
    made = compile_plan(lower(CODES, host.features), host, Golden((x,), (shifted.astype(np.uint8),), ties=(1.0,)))
    program = unpacked(made.members, tmp_path)
    done = subprocess.run([program, "--json", "--iterations", "3"], capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert (found["golden_ok"], found["golden_moved"], found["golden_differing"]) == (ok, moved, len(differences))
    assert done.returncode == (0 if ok else 1)
