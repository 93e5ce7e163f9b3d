"""`compile`: from ONNX to a checked bundle, with golden outputs, report and manifest; and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hand_plan import Example

from subbyte.errors import ModelError, UnknownNameError, UsageError
from subbyte.runtime.bundle import open_bundle
from subbyte.tvm_kernels import _WithoutTorch, compiler, lowering
from subbyte.tvm_kernels.compiler import bundle_plan, compile
from subbyte.tvm_kernels.emit import Golden
from subbyte.tvm_kernels.golden import golden_tensors
from subbyte.tvm_kernels.graph import Graph
from subbyte.tvm_kernels.lowering import lower_graph
from subbyte.tvm_kernels.machines import get_target

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
small (float[2, 6] x) => (float[2, 3] y)
<float[6, 3] w = {0.5, -1.25, 2.0, 0.125, 3.0, -0.75, 1.5, 0.25, -2.5,
                 1.0, -1.0, 0.5, 2.25, 0.0, 1.75, -0.5, 0.375, -3.0}>
{
  product = MatMul(x, w)
  y = Relu(product)
}
"""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(MODEL)


def test_a_model_becomes_a_bundle_with_golden_outputs(model: onnx.ModelProto, tmp_path: Path) -> None:
    source = tmp_path / "small.onnx"
    onnx.save(model, source)
    report = compile(source)
    assert report.path == tmp_path / "small.subbyte"
    assert report.golden.startswith("onnxruntime")
    with open_bundle(tmp_path / "small.subbyte") as bundle:
        manifest = bundle.manifest
        assert [t.name for t in manifest.inputs] == ["x"]
        assert [t.shape for t in manifest.outputs] == [(2, 3)]
        assert manifest.source["onnx_bytes"] == source.stat().st_size
        assert set(manifest.target.features) == get_target("host").features
        assert len(manifest.operators) == len(report.rows) >= 1
        assert {"library.so", "bench", "report.json", "weights.bin"} < set(bundle.members)
        assert "library.a" not in bundle.members  # --archive
        stored = json.loads(bundle.read("report.json"))
    assert stored["rows"][0]["kernel"] == report.rows[0].kernel
    assert stored["macs"] == report.macs == 2 * 6 * 3
    assert stored["fallbacks"] == []


def test_golden_inputs_can_be_given(model: onnx.ModelProto, tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.save(tmp_path / "x.npy", x)
    compile(model, tmp_path / "a.subbyte", golden_inputs=[tmp_path / "x.npy"], keep=tmp_path / "kept")
    np.testing.assert_array_equal(np.load(tmp_path / "kept" / "golden" / "input_0.npy"), x)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_array_equal(np.load(tmp_path / "kept" / "golden" / "output_0.npy"), np.maximum(x @ weights, 0))


def test_golden_inputs_depend_on_the_seed_alone(model: onnx.ModelProto, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        compile(model, tmp_path / f"{name}.subbyte", target="cortex-m4", seed=seed, keep=tmp_path / name)
    read = {name: (tmp_path / name / "golden" / "input_0.npy").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]
    assert (tmp_path / "a.subbyte").read_bytes() == (tmp_path / "b.subbyte").read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "0 golden inputs for a model with 1"),
        ([np.zeros((2, 5), np.float32)], r"golden input 'x' is float32 \[2, 5\]"),
        ([np.zeros((2, 6), np.int32)], r"golden input 'x' is int32 \[2, 6\]"),
        (["missing.npy"], r"golden input missing\.npy cannot be read: No such file"),
    ],
)
def test_wrong_golden_inputs_are_refused(
    model: onnx.ModelProto, tmp_path: Path, given: list[object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compile(model, tmp_path / "a.subbyte", golden_inputs=given)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target_and_a_missing_folder_are_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cortex-a53'"):
        compile(model, tmp_path / "a.subbyte", target="cortex-a55")
    with pytest.raises(UsageError, match="no folder"):
        compile(model, tmp_path / "nowhere" / "a.subbyte")
    with pytest.raises(UsageError, match="say where the bundle goes"):
        compile(model)


def test_the_model_is_not_replaced_by_its_bundle(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="that is a file this command reads"):
        compile(path, tmp_path / "." / "model.onnx")
    assert path.read_bytes() == before


def test_a_report_prints_a_line_for_each_product(model: onnx.ModelProto, tmp_path: Path) -> None:
    report = compile(model, tmp_path / "m.subbyte")
    first, _, *others, library, last = str(report).splitlines()
    assert first.startswith(f"{report.name} for host: {len(report.rows)} operators")
    assert others == [
        line for line in others if any(line.startswith(row.name) and row.kernel in line for row in report.rows)
    ]
    assert len(others) == sum(bool(row.macs) for row in report.rows) > 0
    assert library.startswith("library.so, for glibc 2.")
    assert report.compiler
    assert library.endswith(f": compiled by {report.compiler}")
    assert last == f"golden outputs of {report.golden}: replayed"


def test_a_failed_compilation_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x0a not an onnx file")
    with pytest.raises(ModelError):
        compile(broken)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]


def test_a_plan_keeps_names_and_places_in_the_manifest(tmp_path: Path) -> None:
    example = Example()
    golden = Golden(example.inputs, example.outputs)
    report = bundle_plan(example.plan, get_target("cortex-m4"), tmp_path / "hand.subbyte", golden)
    assert report.flash_bytes is None or report.flash_bytes > len(example.plan.weights)
    assert report.ram_bytes >= example.plan.arena_bytes
    with open_bundle(tmp_path / "hand.subbyte") as bundle:
        rows = bundle.manifest.operators
        assert [row.tiles for row in rows] == [7, 7, 1]
        hidden = rows[1].outputs[0]
        assert (hidden.tensor, hidden.space, hidden.offset, hidden.bytes) == ("hidden", "arena", 64, 280)
        assert bundle.manifest.name == 'hand "made"'
        assert "source/kernels.c" in bundle.members


def test_a_compilation_loads_no_pytorch_and_what_comes_after_it_may(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    code = """
import sys, subbyte
subbyte.compile(sys.argv[1], replay=False)
print("tvm" in sys.modules, "torch" in sys.modules)
import torch
print(float(torch.ones(3) @ torch.arange(3.0)))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "m.onnx")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True False\n3.0\n"


def test_another_thread_finds_pytorch_while_tvm_is_imported() -> None:
    finder = _WithoutTorch()
    with pytest.raises(ImportError):
        finder.find_spec("torch")
    with ThreadPoolExecutor(1) as other:
        assert other.submit(finder.find_spec, "torch").result() is None


def test_a_plan_outlives_the_graph_and_its_decoded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes and levels take a byte each for a weight; code generation and golden runs need neither."""
    lowered: list[weakref.ref[Graph]] = []
    alive = []

    def lower(*given: Any, **named: Any) -> Graph:
        graph = lower_graph(*given, **named)
        lowered.append(weakref.ref(graph))
        return graph

    def golden(*given: Any) -> Any:
        alive.extend(graph() for graph in lowered)
        return golden_tensors(*given)

    monkeypatch.setattr(lowering, "lower_graph", lower)
    monkeypatch.setattr(compiler, "golden_tensors", golden)
    compile(onnx.parser.parse_model(MODEL), tmp_path / "m.subbyte")
    assert alive == [None]
