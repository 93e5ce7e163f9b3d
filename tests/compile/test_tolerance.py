"""The golden comparison is one rule: the runtime, the bench program and the example of C sources say the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from unpacked import unpacked

from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, _compare, within_tolerance
from subbyte.runtime.manifest import TensorInfo
from subbyte.tvm_kernels.emit import Golden, compile_plan
from subbyte.tvm_kernels.lowering import lower
from subbyte.tvm_kernels.machines import get_target

Array = npt.NDArray[Any]
NAN, INFINITY, BIG, LEAST = float("nan"), float("inf"), 1 << 60, -(1 << 63)
FLAGS = ["-std=c99", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unused", "-Werror"]

# dtype, what a model gives, its golden output, tie: right or not, and elements moved
CASES: list[tuple[str, list[Any], list[Any], float, bool, int]] = [
    ("float32", [-1000, 5e-3], [-1000, 0], 0, True, 0),  # 1e-5 of the largest magnitude is 1e-2
    ("float32", [1000, 2e-2], [1000, 0], 0, False, 0),
    ("float32", [1000, 2e-2], [1000, 0], 0.5, True, 1),
    ("float32", [1000.15, 0], [1000, 0], 0, False, 0),  # beyond 1e-4 of the value and 1e-5 of the largest
    ("float32", [1e-3, 5e-6], [1e-3, 0], 0, True, 0),  # of small values it is 1e-5
    ("float32", [1e-3, 2e-5], [1e-3, 0], 0, False, 0),
    ("float32", [INFINITY, 1e-4], [INFINITY, 0], 0, False, 0),  # an infinity widens nothing
    ("float32", [INFINITY, NAN], [INFINITY, NAN], 0, True, 0),
    ("float32", [5, 1], [INFINITY, 1], 1, False, 0),
    ("float32", [-INFINITY, 1], [INFINITY, 1], 1, False, 0),
    ("float32", [NAN, 1], [0, 1], 1, False, 0),
    ("int64", [BIG + 1, 0], [BIG, 0], 0, False, 0),  # float64 does not tell them apart
    ("int64", [BIG + 1, 0], [BIG, 0], 1, True, 1),
    ("int64", [BIG + 2, 0], [BIG, 0], 1, False, 0),
    ("int64", [LEAST, 0], [-LEAST - 1, 0], 1, False, 0),  # the difference is beyond int64
    ("int32", [(1 << 24) + 1, 0], [1 << 24, 0], 0, False, 0),
    ("int32", [(1 << 24) + 2, 0], [(1 << 24) + 1, 0], 1, True, 1),
    ("uint8", [3, 7], [4, 7], 0, False, 0),
]


def unchanged(dtype: str) -> onnx.ModelProto:
    """A model that gives its input, bit by bit."""
    kind = "float" if dtype == "float32" else dtype
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng ({kind}[2] x) => ({kind}[2] y) {{ y = Reshape(x, s) }}'
    made = onnx.parser.parse_model(text)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2], np.int64), "s"))
    return made


@pytest.mark.parametrize(("dtype", "got", "want", "tie", "ok", "moved"), CASES)
def test_python_and_both_c_programs_compare_alike(
    dtype: str, got: list[Any], want: list[Any], tie: float, ok: bool, moved: int, tmp_path: Path
) -> None:
    made, wanted = np.array(got, dtype), np.array(want, dtype)
    row = _compare(TensorInfo("y", dtype, (2,)), made, wanted, tie)
    assert (row.ok, row.moved) == (ok, moved)
    assert bool(within_tolerance(made, wanted).all()) is (ok and not moved)

    golden = Golden((made,), (wanted,), RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, (tie,))
    host = get_target("host")
    emitted = compile_plan(lower(unchanged(dtype), host.features), host, golden)
    program = unpacked(emitted.members, tmp_path)
    done = subprocess.run([program, "--json", "--iterations", "3"], capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert (found["golden_ok"], found["golden_moved"], found["golden_max_error"]) == (ok, moved, row.max_abs_error)
    assert found["golden_differing"] == row.differing

    board = get_target("cortex-m4")
    for name, data in compile_plan(lower(unchanged(dtype), board.features), board, golden).members.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    folder = tmp_path / "source"
    names = ("kernels.c", "model.c", "weights.c", "run.c", "failure.c", "needs.c", "golden.c", "example.c")
    subprocess.run(["gcc", *FLAGS, "-o", "example", *names, "-lm"], cwd=folder, check=True)
    done = subprocess.run([folder / "example"], capture_output=True, text=True)
    assert f"output 0 differing {row.differing}" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1] == ("golden ok" if ok else "golden DIFFERENT")
    assert done.returncode == (0 if ok else 1)


@pytest.mark.parametrize(("dtype", "got", "want", "tie"), [case[:4] for case in CASES])
def test_scalars_and_empty_outputs_compare_as_others(dtype: str, got: list[Any], want: list[Any], tie: float) -> None:
    """Element by element; an output that is one value has the scale of that value."""
    for left, right in zip(got, want, strict=True):
        made, wanted = np.array(left, dtype), np.array(right, dtype)
        row = _compare(TensorInfo("y", dtype, ()), made, wanted, tie)
        assert row == _compare(TensorInfo("y", dtype, (1,)), made.reshape(1), wanted.reshape(1), tie)
    empty = np.empty((0, 3), dtype)
    row = _compare(TensorInfo("y", dtype, (0, 3)), empty, empty, tie)
    assert (row.ok, row.elements, row.max_abs_error) == (True, 0, 0.0)


def test_a_signalling_nan_is_within_the_tolerance_of_any_nan_without_a_warning() -> None:
    want = np.array([0x7F800001, 0xFFC00000, 0x3F800000], np.uint32).view(np.float32)
    got = np.array([0x7FC00000, 0x7F800001, 0x7F800001], np.uint32).view(np.float32)
    assert within_tolerance(got, want).tolist() == [True, True, False]
