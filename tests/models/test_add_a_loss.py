"""docs/add-a-loss.md, followed in a copy of the package: its loss obeys the rules, and a model is trained with it."""

from __future__ import annotations

import re
from pathlib import Path

from pages import ROOT, copy_package, python_blocks, run, shell, text_of

PAGE = "docs/add-a-loss.md"
CHECK = """
import torch
import subbyte
from subbyte.models.losses import Outputs, Targets, create_loss, get_loss

assert subbyte.__file__.startswith({folder!r})
assert get_loss("focal").needs == {{"logits", "label"}}
logits, label = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]]).double(), torch.tensor([0, 2])
p = torch.softmax(logits, -1)[torch.arange(2), label]
for gamma in (0.0, 1.5, 2.0):
    found = create_loss("focal", gamma=gamma)(Outputs(logits=logits), Targets(label=label))
    torch.testing.assert_close(found.per_sample, -((1 - p) ** gamma) * torch.log(p))
    torch.testing.assert_close(found.value, found.per_sample.mean())
subbyte.train("mlp", data="digits", scheme="ternary", epochs=1, out="from-python", loss="focal",
              loss_options={{"gamma": 1.5}}, model_options={{"hidden": [16]}}, progress=False)
"""


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    (block,) = python_blocks(PAGE)
    package = copy_package(tmp_path)
    (package / re.match(r"# (models/\S+)\n", block)[1]).write_text(block, encoding="utf-8")
    (line,) = re.findall(r"`(from subbyte.models.losses import \w+)`", text_of(PAGE))
    with (package / "models" / "losses" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    run(CHECK.format(folder=str(tmp_path)), tmp_path, PYTHONPATH=str(tmp_path))
    (options,) = re.findall(r"`subbyte train ... (--loss focal [^`]+)`", text_of(PAGE))
    command = f"python -m subbyte train mlp --data digits --epochs 1 --model-option hidden=16, --out run {options}"
    tests = f"python -m pytest -p no:cacheprovider -c {ROOT}/pyproject.toml {ROOT}/tests/models/test_losses.py -k focal"
    path = f"export PYTHONPATH={tmp_path}"
    assert "focal" in shell(f"{path}; python -m subbyte losses", tmp_path)
    shell(f"{path}; {command}", tmp_path)
    assert '"loss": "focal"' in (tmp_path / "run" / "checkpoint.json").read_text()
    assert '"gamma": 1.5' in (tmp_path / "run" / "checkpoint.json").read_text()
    assert "passed" in shell(f"{path}; {tests}", tmp_path)  # those over list_losses()
