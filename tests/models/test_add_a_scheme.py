"""docs/add-a-scheme.md, followed in a copy of the package: one file, which keeps every promise and is trained with."""

from __future__ import annotations

from pathlib import Path

from pages import ROOT, commands, copy_package, new_file, python_blocks, run_copy, shell

PAGE = "docs/add-a-scheme.md"
CHECK = """
import pytest
import torch
from torch import nn
from subbyte.models.quant import combine, get_scheme, quantize, register_weights

w = torch.tensor([[0.9, -0.3, 0.05, -1.2], [0.2, 0.1, -0.1, -0.4]])
quantizer = register_weights.make("ternary-threshold").weight_quantizer(w)
assert quantizer.codes(w).tolist() == [[1, 0, 0, -1], [1, 0, 0, -1]]
assert quantizer.scales().tolist() == pytest.approx([1.05, 0.3])
for scheme in (get_scheme("ternary-threshold", keep=None), combine("ternary-threshold", "int4")):
    model = quantize(nn.Sequential(nn.Linear(4, 2)), scheme)
    model(torch.randn(3, 4)).sum().backward()
    assert model.quantization_report[0].weights == "ternary"
model = quantize(nn.Sequential(nn.Linear(4, 4)), combine("ternary-threshold")).eval()
assert subbyte.export(model, "twn.onnx", example=torch.randn(1, 4)).verification.max_error < 1e-6
"""


def test_the_page_works_as_it_is_written(tmp_path: Path) -> None:
    (block,) = python_blocks(PAGE)
    package = copy_package(tmp_path)
    (package / new_file(PAGE)).write_text(block, encoding="utf-8")
    run_copy(CHECK, tmp_path)
    path = f"export PYTHONPATH={tmp_path}"
    assert "ternary-threshold " in shell(f"{path}; python -m subbyte schemes", tmp_path)
    trained = commands(PAGE, "subbyte train mlp").replace("subbyte train", "python -m subbyte train")
    shell(f"{path}; {trained}", tmp_path)
    for folder in ("twn", "recipe"):
        assert "ternary-threshold" in (tmp_path / "runs" / folder / "checkpoint.json").read_text()
    tests = f"python -m pytest -p no:cacheprovider -c {ROOT}/pyproject.toml {ROOT}/tests/models/test_quant_register.py"
    assert "passed" in shell(f"{path}; {tests} -k ternary-threshold", tmp_path)  # those over the registers
