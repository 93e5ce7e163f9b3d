"""docs/add-a-post-step.md, followed in a copy of the package: its step runs in its place, and does what it says."""

from __future__ import annotations

import shlex
from pathlib import Path

from pages import commands, copy_package, new_file, python_blocks, run_copy

PAGE = "docs/add-a-post-step.md"
CHECK = """
import copy
import torch
from subbyte.models.post import Calibration, calls_of, list_steps, post_train
from subbyte.models.quant import as_recipe, combine, quantized_layers

assert list_steps() == ["equalization", "adaround", "least-squares", "batch-norm", "bias-correction"]
torch.manual_seed(0)
model, x = torch.nn.Sequential(torch.nn.Linear(40, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)), torch.randn(64, 40)
recipe, calibration = as_recipe(combine("int3", "int8")), Calibration("min-max", "min-max")
plain, fitted = (post_train(copy.deepcopy(model), [x], recipe, calibration, calls_of(steps))
                 for steps in ([], ["least-squares", "bias-correction"]))
for name, layer in quantized_layers(fitted).items():
    w, before = dict(model.named_modules())[name].weight.detach(), quantized_layers(plain)[name].weight_quantizer
    codes = layer.weight_quantizer.codes(layer.weight_quantizer.latent())
    assert torch.equal(codes, before.codes(w))
    solved = [torch.linalg.lstsq(c.unsqueeze(1), row.unsqueeze(1)).solution for c, row in zip(codes, w)]
    expected = torch.stack([one[0, 0] for one in solved])
    torch.testing.assert_close(layer.weight_quantizer.scales().flatten(), expected)
"""
COMMANDS = """
from subbyte.cli import main

for line in LINES:
    main(line, standalone_mode=False)
"""


def test_the_page_works_as_it_is_written(tmp_path: Path) -> None:
    (block,) = python_blocks(PAGE)
    package = copy_package(tmp_path)
    (package / new_file(PAGE)).write_text(block, encoding="utf-8")
    lines = [shlex.split(line) for line in commands(PAGE, "subbyte train mlp").splitlines()]
    assert [line[:2] for line in lines] == [["subbyte", "train"], ["subbyte", "quantize"]]
    run_copy(f"{CHECK}LINES = {[line[1:] for line in lines]!r}\n{COMMANDS}", tmp_path)
    assert "least-squares(smallest=0.0001)" in (tmp_path / "runs" / "int4" / "checkpoint.json").read_text()
