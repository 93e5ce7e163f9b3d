"""Operators that read or write by indices: right by negative ones, and an index out of range fails the run by name."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hand_graphs import Builder
from onnx.reference import ReferenceEvaluator
from run_plan import onnxruntime_outputs, run_plan
from unpacked import unpacked

import subbyte
from subbyte.errors import InputError, ModelError
from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.emit import Golden, compile_plan
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.kernels.tir import execute
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.operators.check_indices import CheckIndices

HOST = host_features()
TYPES = {"int64": onnx.TensorProto.INT64, "int32": onnx.TensorProto.INT32}
RNG = np.random.default_rng(3)
TABLE, UPDATES = RNG.standard_normal((10, 4)).astype(np.float32), RNG.standard_normal((5, 4)).astype(np.float32)


def indexed(op: str, indices: Any, dtype: str = "int64", **attributes: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model that reads a table [10, 4] by indices of run time, or writes updates into it; and its inputs."""
    b = Builder()
    given = np.asarray(indices, dtype)
    names = [b.constant(TABLE), b.input(*given.shape, name="i", dtype=TYPES[dtype])]
    if op.startswith("Scatter"):
        names.append(b.constant(np.resize(UPDATES, given.shape if op == "ScatterElements" else (given.shape[0], 4))))
    return b.model(b.node(op, *names, **attributes)), {"i": given}


CASES: list[Any] = [
    ("Gather", 9, {}),
    ("Gather", [0, 9, -1, -10, 3], {}),
    ("Gather", [[1, -4], [-3, 3]], {"axis": 1}),
    ("Gather", [[1, -4], [-3, 3]], {"axis": -1}),
    ("GatherElements", [[0, -1, 9, -10], [3, 3, -3, 1]], {"axis": 0}),
    ("GatherElements", RNG.integers(-4, 4, (10, 3)), {"axis": 1}),
    ("GatherND", [[9], [-10], [-1]], {}),
    ("GatherND", [[9, -4], [-10, 3], [-1, 0]], {}),
    ("GatherND", RNG.integers(-4, 4, (10, 2, 1)), {"batch_dims": 1}),
    ("ScatterElements", [[0, -1, 9, -10], [3, 4, -3, 1]], {"axis": 0}),
    ("ScatterElements", [[0, 0, 0, 0], [-10, 0, 1, 0]], {"axis": 0, "reduction": "add"}),
    ("ScatterND", [[9], [-10], [-2]], {}),
    ("ScatterND", [[3], [-7], [3]], {"reduction": "add"}),
]


@pytest.mark.parametrize(
    ("op", "indices", "attributes", "dtype"),
    [(*case, dtype) for case in CASES for dtype in ("int64", "int32") if (case[0][-2:], dtype) != ("ND", "int32")],
)
def test_indices_count_from_the_start_or_from_the_end(op: str, indices: Any, attributes: Any, dtype: str) -> None:
    model, inputs = indexed(op, indices, dtype, **attributes)
    (wanted,) = onnxruntime_outputs(model, inputs).values()
    outputs, _ = run_plan(lower(model, HOST), inputs)
    (got,) = outputs.values()
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)
    (interpreted,) = interpret(lower_graph(model), inputs).values()
    np.testing.assert_array_equal(interpreted, wanted)


@pytest.mark.parametrize(("op", "indices", "attributes"), CASES)
def test_constant_indices_are_checked_when_the_model_is_compiled(op: str, indices: Any, attributes: Any) -> None:
    model, inputs = indexed(op, indices, **attributes)
    del model.graph.input[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(inputs["i"], "i"))
    names = ["w" if name == model.graph.node[0].input[0] else name for name in model.graph.node[0].input]
    del model.graph.node[0].input[:]  # what is computed from constants alone never reaches a kernel
    model.graph.node[0].input.extend(names)
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, TABLE.shape))
    (wanted,) = onnxruntime_outputs(model, {"w": TABLE}).values()
    outputs, _ = run_plan(lower(model, HOST), {"w": TABLE})
    np.testing.assert_array_equal(next(iter(outputs.values())), wanted)
    for bad in (10, -11, 10**12):
        wrong = inputs["i"].copy()
        wrong.flat[-1] = bad
        model.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(wrong, "i"))
        at = f"index {bad}, element {wrong.size - 1} of its indices, is out of range; expected -"
        with pytest.raises(ModelError, match=rf"'n0\.{op}': {at}"):
            lower(model, HOST)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_run_by_an_index_out_of_range_fails_and_the_next_one_does_not(threads: int, tmp_path: Path) -> None:
    b = Builder()
    rows = b.node("Gather", b.constant(TABLE), b.input(3, name="i", dtype=TYPES["int64"]))
    picked = b.node("GatherElements", b.node("Sin", rows), b.input(2, 4, name="j", dtype=TYPES["int32"]), axis=0)
    good = [np.array([1, -1, 9]), np.array([[0, -3, 2, 1], [1, 1, -1, 0]], np.int32)]
    subbyte.compile(b.model(picked), tmp_path / "m.subbyte", golden_inputs=good)
    with subbyte.load(tmp_path / "m.subbyte", threads=threads) as session:
        assert session.check_golden().ok
        for bad in (10, -11, 10**6, 10**12, -(2**63)):
            wrong = np.array([0, bad, 10**9])  # the first that is wrong is named
            with pytest.raises(InputError, match=rf"'n0\.Gather': index {bad}, element 1 .*; expected -10 \.\. 9"):
                session.run([wrong, good[1]])
            wrong = good[1].copy()
            wrong[1, 3] = max(-(2**31), bad) if abs(bad) < 2**31 else 3
            with pytest.raises(InputError, match=rf"Elements': index {wrong[1, 3]}, element 7 .*; expected -3 \.\. 2"):
                session.run([good[0], wrong])
            assert session.check_golden().ok
        report = {row.name: row for row in session.manifest.operators if row.kind == "CheckIndices"}
        assert {name: (row.activation, row.macs) for name, row in report.items()} == {
            "n0.Gather": ("int64", 0),
            "n2.GatherElements": ("int32", 0),
        }


def test_programs_name_the_operator_and_the_index(tmp_path: Path) -> None:
    """The static bench program, and the sources for microcontrollers under the sanitizers."""
    model, inputs = indexed("Gather", [0, 12, 3])
    plan = lower(model, HOST)
    golden = Golden((inputs["i"],), ())
    wanted = "operator 'n0.Gather': index 12, element 1 of its indices, is out of range; expected -10 .. 9"
    program = unpacked(compile_plan(plan, get_target("host"), golden).members, tmp_path)
    done = subprocess.run([program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: the model failed: {wanted}\n"

    for name, data in compile_plan(plan, get_target("cortex-m4"), golden).members.items():
        (tmp_path / Path(name).name).write_bytes(data)
    files = ["kernels.c", "model.c", "weights.c", "run.c", "failure.c", "needs.c", "golden.c", "example.c"]
    flags = ["-std=c99", "-O1", "-fno-strict-aliasing", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["gcc", *flags, *files, "-o", "example", "-lm"], cwd=tmp_path, check=True, timeout=600)
    done = subprocess.run([tmp_path / "example"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert done.stdout.endswith(f"error: {wanted}\n")


def test_the_kernel_equals_its_reference() -> None:
    sizes = (7, 1, 300)
    given = np.stack([RNG.integers(-size, size, 50) for size in sizes], axis=-1)
    op = CheckIndices("check", given.size, sizes, "int64")
    (got,), (wanted,) = execute.run(op, [given]), operators.run(op, [given])
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(wanted.reshape(given.shape), given % sizes)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float32"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot_is_off_everywhere_for_an_index_out_of_range(dtype: str, axis: int) -> None:
    given = np.array([[0, 4, 5, 200], [3, -1, -5, -6]]).astype(dtype)
    b = Builder()
    kind = {**TYPES, "uint8": onnx.TensorProto.UINT8, "float32": onnx.TensorProto.FLOAT}[dtype]
    depth, values = b.constant(5, np.int64), b.constant([-2.0, 3.0])
    model = b.model(b.node("OneHot", b.input(2, 4, name="i", dtype=kind), depth, values, axis=axis))
    outputs, _ = run_plan(lower(model, HOST), {"i": given})
    (got,) = outputs.values()
    whole = given.astype(np.int64)
    places = np.where(whole < 0, whole + 5, whole)[..., None] == np.arange(5)
    np.testing.assert_array_equal(got, np.moveaxis(np.where(places, np.float32(3), np.float32(-2)), -1, axis))
    if dtype == "int64":  # onnxruntime lacks the others
        (theirs,) = onnxruntime_outputs(model, {"i": given}).values()
        np.testing.assert_array_equal(got, theirs)


def test_one_hot_is_off_everywhere_for_a_float_between_two_places() -> None:
    """At run time as where it is a constant, which ONNX's evaluator computes while the file is read."""
    given = np.array([2.0, 2.25, -0.5, -1.0, -1.5, np.nan, 4.999, 0.0], np.float32)
    b = Builder()
    depth, values = b.constant(5, np.int64), b.constant([-2.0, 3.0])
    model = b.model(b.node("OneHot", b.input(8, name="i"), depth, values))
    (got,) = run_plan(lower(model, HOST), {"i": given})[0].values()
    (theirs,) = ReferenceEvaluator(model).run(None, {"i": given})
    np.testing.assert_array_equal(got, theirs)
    assert [int(row.argmax()) if row.max() > 0 else None for row in got] == [2, None, None, 4, None, None, None, 0]
