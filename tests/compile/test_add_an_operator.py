"""docs/add-an-operator.md, followed in a copy of the package that has no Lookup: four files, and no other edit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import ROOT, copy_package, python_blocks, run_copy, text_of

PAGE = "docs/add-an-operator.md"
BLOCKS = python_blocks(PAGE)
FILES = dict(zip(re.findall(r"^## .*`(.*\.py)`$", text_of(PAGE), re.MULTILINE), BLOCKS, strict=False))
WITHOUT = """
from subbyte.dialect.function import find
from subbyte.tvm_kernels.kernels.registry import rows
from subbyte.tvm_kernels.lowering import stages
from subbyte.tvm_kernels.operators import operators

import subbyte.tvm_kernels.kernels
assert find("Lookup") is None
assert "Lookup" not in {operator.__name__ for operator in operators()}
assert "lookup" not in {row.name for row in rows()}
assert "table look-up" not in {rule.name for _, rules in stages() for rule in rules}
"""
CHECK = """
import numpy as np
from subbyte.export import run_onnx
from subbyte.export.baselines import int8_baseline

read = inspect("model.onnx")
assert [layer.weight_format for layer in read.layers] == ["int8", "ternary", "int8"], read.layers
assert read.parameters == 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10, read.parameters  # the tables are none
assert read.macs == 64 * 64 + 64 * 64 + 64 * 10 and not read.warnings

x = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
wanted = run_onnx("model.onnx", x)["logits"]
with subbyte.load("host.subbyte") as session:
    assert np.array_equal(session.run(x), wanted)
plain = float_baseline("model.onnx")
assert not {"Quantize"} & {node.op_type for node in plain.graph.node}
floats = run_onnx(plain, x)["logits"]
assert np.abs(floats - wanted).max() < 0.1 * np.abs(wanted).max(), (floats, wanted)
assert run_onnx(int8_baseline(plain, [x]), x)["logits"].shape == (1, 10)

energy = {row.name: row for row in found.energy_modelled.operators}
(first,) = [row for name, row in energy.items() if "2/" in name and row.arithmetic == "8 KB table read"]
assert first.modelled_compute_pj == 64 * 10.0, first
assert sum(row.kernel == "lookup" for row in found.operators) == 2 and found.golden_exact
print("all is well")
"""


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    assert len(FILES) == 4
    assert len(BLOCKS) == 5
    package = copy_package(tmp_path, without=FILES)
    run_copy(WITHOUT, tmp_path)
    for name, text in FILES.items():
        (package / name).write_text(text, encoding="utf-8")
    assert run_copy(BLOCKS[4] + CHECK, tmp_path).rstrip().endswith("all is well")


@pytest.mark.parametrize("name", FILES)
def test_the_page_shows_the_files_of_the_package(name: str) -> None:
    assert FILES[name] == (ROOT / name).read_text(encoding="utf-8")
