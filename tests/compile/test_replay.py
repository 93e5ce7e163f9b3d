"""`compile` runs the golden inputs of a new bundle: what differs, dies or never ends is refused, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from subbyte.errors import CompileError
from subbyte.runtime.bundle import open_bundle
from subbyte.tvm_kernels.assembly import assemble
from subbyte.tvm_kernels.compiler import CompileReport, bundle_plan, compile
from subbyte.tvm_kernels.golden import golden_tensors
from subbyte.tvm_kernels.lowering import lower_graph
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.replay import Child, Origin, replay

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
small (float[2, 6] x) => (float[2, 3] y)
<float[6, 3] w = {0.5, -1.25, 2.0, 0.125, 3.0, -0.75, 1.5, 0.25, -2.5,
                 1.0, -1.0, 0.5, 2.25, 0.0, 1.75, -0.5, 0.375, -3.0}>
{
  [first] a = Exp(x)
  [second] b = MatMul(a, w)
  [third] c = Softmax(b)
  [fourth] y = MatMul(c, v)
}
"""
BEFORE = b"what was there before"


def model() -> onnx.ModelProto:
    made = onnx.parser.parse_model(MODEL)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32), "v"))
    return made


def compiled(output: Path, call: str = "", change: Callable[[Any], Any] = lambda function: function) -> CompileReport:
    """As `compile`, with another function as the kernel of one call."""
    host = get_target("host")
    graph = lower_graph(model(), host.features)
    plan = assemble(graph, host.features)
    assert not call or call in [row.name for row in plan.calls]
    calls = tuple(replace(row, function=change(row.function)) if row.name == call else row for row in plan.calls)
    plan = replace(plan, calls=calls)
    golden = golden_tensors(model(), plan)
    return bundle_plan(plan, host, output, golden, origin=Origin(lambda: graph))


def filled_with(value: float, at: int = 0) -> Callable[[Any], Any]:
    """A kernel of the same parameters that writes one number over its result, from element `at` on."""

    def change(function: Any) -> Any:
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("constant")
            buffers = [
                T.arg(f"p{i}", T.buffer(tuple(int(n) for n in p.shape), str(p.dtype)))
                for i, p in enumerate(function.params)
            ]
            rows, columns = (int(n) for n in function.params[-1].shape)
            with T.serial(0, rows) as row, T.serial(0, columns) as column:
                T.buffer_store(buffers[-1], T.float32(value), [row + at, column])
        return builder.get()

    return change


def test_a_right_bundle_is_replayed_and_says_so(tmp_path: Path) -> None:
    report = compile(model(), tmp_path / "m.subbyte")
    assert report.not_replayed is None
    assert report.replay.endswith("without optimisation: replayed")


def test_a_wrong_kernel_is_refused_by_name_and_the_old_file_stays(tmp_path: Path) -> None:
    output = tmp_path / "m.subbyte"
    output.write_bytes(BEFORE)
    message = r"'second' \(kernel 'float-.*' has 7.0 at \[0, 0\], expected .* 6 of 6.*--golden-inputs.*check .* --trace"
    with pytest.raises(CompileError, match=message):
        compiled(output, "second", filled_with(7))
    assert output.read_bytes() == BEFORE
    assert list(tmp_path.iterdir()) == [output]


def float_product(factor: float = 1.0) -> onnx.ModelProto:
    """Sums of 1,024 terms, in values of about 32: where a sum cancels, its float32 error is far beyond 1e-5."""
    text = "g (float[8, 1024] x) => (float[8, 1000] y) { [wide] y = MatMul(x, w) }"
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    weights = np.random.default_rng(0).standard_normal((1024, 1000)).astype(np.float32) * np.float32(factor)
    made.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return made


def test_float_sums_are_compared_by_the_size_of_their_values(tmp_path: Path) -> None:
    assert compile(float_product(), tmp_path / "m.subbyte").not_replayed is None
    host = get_target("host")
    wrong = lower_graph(float_product(1.01), host.features)
    plan = assemble(wrong, host.features)
    golden = golden_tensors(float_product(), plan)
    with pytest.raises(CompileError, match="does not replay its golden run"):  # wrong by 1%
        bundle_plan(plan, host, tmp_path / "wrong.subbyte", golden, origin=Origin(lambda: wrong))
    assert not (tmp_path / "wrong.subbyte").exists()


def test_a_kernel_that_kills_the_process_is_refused_by_name(tmp_path: Path) -> None:
    killed = r"was killed by SIG.*the last operator started is 'second' \(kernel 'float-"
    with pytest.raises(CompileError, match=killed):
        compiled(tmp_path / "m.subbyte", "second", filled_with(7, at=1 << 40))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "m.subbyte"
    compiled(output)
    host = get_target("host")
    plan = assemble(lower_graph(model(), host.features), host.features)
    with Child() as child, pytest.raises(CompileError, match="did not finish in time"):
        replay(child, output, plan, golden_tensors(model(), plan), seconds=0)


def test_a_wrong_lowering_is_told_from_a_wrong_kernel(tmp_path: Path) -> None:
    """The graph that was lowered is of another model than the golden outputs."""
    host = get_target("host")
    graph = lower_graph(model(), host.features)
    plan = assemble(graph, host.features)
    other = model()
    other.graph.node[2].op_type = "LogSoftmax"
    golden = golden_tensors(other, plan)
    message = r"every operator equals its reference implementation.*: 'c' of node 'third' \(LogSoftmax\) is the first"
    with pytest.raises(CompileError, match=message):
        bundle_plan(plan, host, tmp_path / "m.subbyte", golden, origin=Origin(lambda: graph, other))


def test_who_is_not_replayed_says_why(tmp_path: Path) -> None:
    reasons = {
        "asked not to": compile(model(), tmp_path / "a.subbyte", replay=False),
        "the bundle holds C sources": compile(model(), tmp_path / "b.subbyte", target="cortex-m4"),
    }
    for reason, report in reasons.items():
        assert report.not_replayed == reason
        assert report.to_json()["not_replayed"] == reason
    assert "not replayed, asked not to" in str(reasons["asked not to"])


def test_another_processor_is_not_replayed(tmp_path: Path) -> None:
    other = get_target("cortex-a53" if get_target("host").architecture.machine == "x86_64" else "x86-64-v3")
    report = compile(model(), tmp_path / "m.subbyte", target=other)
    assert report.not_replayed == f"this machine does not run code for {other.triple}"
    with open_bundle(tmp_path / "m.subbyte") as bundle:
        assert bundle.manifest.target.name == other.name


def test_modules_of_the_working_folder_are_not_taken_for_pythons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise ImportError('not the real json')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert compile(model(), tmp_path / "m.subbyte").not_replayed is None


def layers_of_codes(bias: float) -> onnx.ModelProto:
    """Two layers of codes; `bias` is added in front of the quantizer of the second, which has a step of 0.05."""
    rng = np.random.default_rng(0)
    tensors = {
        **{name: rng.integers(-127, 128, (64, 64)).astype(np.int8) for name in ("w1", "w2")},
        **{"s": np.float32(0.05), "sw": np.float32(0.002), "z": np.uint8(128), "b": np.full(64, bias, np.float32)},
    }
    made = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        codes (float[8, 64] x) => (float[8, 64] y) {
            q1 = QuantizeLinear(x, s, z) d1 = DequantizeLinear(q1, s, z) v1 = DequantizeLinear(w1, sw)
            m1 = MatMul(d1, v1) a1 = Add(m1, b)
            q2 = QuantizeLinear(a1, s, z) d2 = DequantizeLinear(q2, s, z) v2 = DequantizeLinear(w2, sw)
            y = MatMul(d2, v2) }""")
    made.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in tensors.items())
    return made


def test_a_quantizer_that_rounds_down_is_no_rounding_tie(tmp_path: Path) -> None:
    """Behind a second quantizer a tie moves outputs by whole steps; a kernel that rounds wrongly moves all of them."""
    host = get_target("host")
    right = layers_of_codes(0.0)
    compile(right, tmp_path / "right.subbyte")
    graph = lower_graph(layers_of_codes(-0.499 * 0.05), host.features)
    plan = assemble(graph, host.features)
    golden = golden_tensors(right, plan)
    with pytest.raises(CompileError, match="does not replay"):
        bundle_plan(plan, host, tmp_path / "wrong.subbyte", golden, origin=Origin(lambda: graph))
    assert not (tmp_path / "wrong.subbyte").exists()
