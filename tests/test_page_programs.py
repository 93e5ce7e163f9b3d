"""The programs of README.md and of the pages that use a model run as they are written, but for shorter training.

Those of the pages on adding something have tests of their own. What a page takes from its reader (a batch, a network, a
path) is defined in front of its program.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from pages import python_blocks, run

IN_FRONT = {
    "README.md": """
import numpy as np, torch
from torch import nn
images, batch = np.zeros((1, 1, 8, 8), np.float32), torch.randn(8, 1, 8, 8)
MyNetwork = lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
""",
    "docs/serving.md": """
import logging, os, resource, subprocess, sys
import numpy as np
import subbyte
x, path, log, served = np.zeros((1, 1, 8, 8), np.float32), "t.subbyte", logging.getLogger(), None
""",
    "docs/state.md": """
import numpy as np, torch
import subbyte, subbyte.models.state
model, images = subbyte.models.untrained("gru", "ternary")
subbyte.export(model.step, "gru.onnx", example=torch.zeros(1, 8))
subbyte.compile("gru.onnx", "gru.subbyte", state=["cell.h=cell.h_next"])
rows = np.random.default_rng(0).random((12, 1, 8), np.float32)
""",
    "docs/train.md": """
import torch
from torch import nn
from torch.utils.data import TensorDataset
MyNet = lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
train_set, test_set = (TensorDataset(torch.rand(64, 1, 8, 8), torch.arange(64) % 10) for _ in range(2))
logits, teacher_logits, labels = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10), torch.arange(4)
weights = torch.ones(4)
""",
    "docs/recipes.md": """
import torch
from subbyte.models import create
network, images = create("vit_micro", size=16), torch.randn(2, 3, 16, 16)
""",
    "docs/bundle.md": """
import json
from pathlib import Path
from subbyte.runtime import open_bundle
with open_bundle("t.subbyte") as made:
    manifest = {key: value for key, value in made.raw.items() if key not in ("schema", "members")}
    Path("build").mkdir()
    Path("build/model.so").write_bytes(made.read("library.so"))
    weights, report = made.read("weights.bin"), made.read("report.json")
""",
}
AFTER = {
    "README.md": """
assert logits.shape == (1, 10)
assert subbyte.load("t.subbyte").check_golden().ok
assert subbyte.export(model.eval(), "mine.onnx", example=batch[:1]).verification.exact
""",
    "docs/serving.md": """
assert logits.shape == (1, 10) and session is new and served == stamp
assert done.returncode == 0, done.stderr
assert subbyte.load("theirs.subbyte").check_golden().ok
""",
    "docs/state.md": """
assert {path: tuple(value.shape) for path, value in named_states(step).items()} == {"h": (1, 16)}
subbyte.compile("trained.onnx", "trained.subbyte")
assert list(subbyte.load("trained.subbyte").state) == ["h"]
with torch.no_grad():
    subbyte.models.state.reset_states(model.step)
    for row in rows:
        expected = model.step(torch.from_numpy(row))
np.testing.assert_array_equal(logits, expected.numpy())
before = session.run(rows[0])
session.state["cell.h"] = kept["cell.h"]
np.testing.assert_array_equal(session.run(rows[0]), before)
session.reset()
assert not np.array_equal(session.run(rows[0]), before)
""",
    "docs/train.md": """
assert run.folder.name == "mine" and checkpoint.config.scheme == "int4"
from subbyte.models import load_checkpoint
assert load_checkpoint("runs/ternary").config.scheme == "ternary"
""",
    "docs/recipes.md": """
assert [row.weights for row in model.quantization_report] == ["int8", *["ternary"] * 16, "int8"]
assert {row.weights for row in network.quantization_report} == {"int8", "ternary"} and 2 < proposal.bits <= 4
""",
    "docs/bundle.md": 'assert bundle.manifest.name == manifest["name"]',
    "docs/lowering.md": "assert not explanation.declined and explanation.kernels",
    "docs/benchmarking.md": 'assert subbyte.load("t.subbyte").check_golden().ok',
}
SHORTER = {"epochs=15": "epochs=1", "epochs=20": "epochs=1", '"float", 8': '"float", 1', '"ternary", 5': '"ternary", 1'}
SHORTER |= {'"ternary", 15': '"ternary", 1'}
SHORTER |= {'"fashion-mnist"': '"digits"', "\n...": "\nmodel(batch)", '"resnet8"': '"mlp"'}


def program(page: str, folder: Path) -> None:
    text = "\n".join(python_blocks(page))
    for written, shorter in SHORTER.items():
        text = text.replace(written, shorter)
    whole = f"{IN_FRONT.get(page, '')}\n{text}\n{AFTER[page]}"
    run(whole, folder, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the programs of README.md ran."""
    folder = tmp_path_factory.mktemp("readme")
    program("README.md", folder)
    return folder


@pytest.mark.parametrize("page", [page for page in AFTER if page != "README.md"])
def test_the_programs_of_a_page_run(page: str, model: Path, tmp_path: Path) -> None:
    for name, copies in (("t.onnx", ("theirs.onnx", "m.onnx")), ("t.subbyte", ("t.subbyte",))):
        for copied in copies:
            shutil.copy(model / name, tmp_path / copied)
    program(page, tmp_path)
