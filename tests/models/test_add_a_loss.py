"""docs/add-a-loss.md, followed in a copy of the package: its loss obeys the rules, and a model is trained with it."""

from __future__ import annotations

from pathlib import Path

from pages import ROOT, commands, copy_package, new_file, python_blocks, run_copy, shell

PAGE = "docs/add-a-loss.md"
CHECK = """
import torch
from subbyte.models.losses import Objective, Outputs, Targets, get_loss

assert get_loss("focal").needs == {"logits", "label"}
logits, label = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]]).double(), torch.tensor([0, 2])
p = torch.softmax(logits, -1)[torch.arange(2), label]
for gamma in (0.0, 1.5, 2.0):
    found = Objective("focal", {"gamma": gamma})(Outputs(logits), Targets(label), "none").value
    torch.testing.assert_close(found, -((1 - p) ** gamma) * torch.log(p))
subbyte.train("mlp", data="digits", scheme="ternary", epochs=1, out="from-python", loss="focal",
              loss_options={"gamma": 1.5}, model_options={"hidden": [16]}, progress=False)
"""


def test_the_page_works_as_it_is_written(tmp_path: Path) -> None:
    (block,) = python_blocks(PAGE)
    package = copy_package(tmp_path)
    (package / new_file(PAGE)).write_text(block, encoding="utf-8")
    run_copy(CHECK, tmp_path)
    path = f"export PYTHONPATH={tmp_path}"
    listed = shell(f"{path}; python -m subbyte losses", tmp_path)
    assert "focal " in listed
    assert "gamma=2.0 (in [0, inf))" in listed
    trained = commands(PAGE, "subbyte train mlp").replace("subbyte train", "python -m subbyte train")
    shell(f"{path}; {trained}", tmp_path)
    for folder, text in (("focal", "focal(gamma=1.5)"), ("sum", "ce + 0.5*focal")):
        assert f'"loss": "{text}"' in (tmp_path / "runs" / folder / "checkpoint.json").read_text()
    tests = f"python -m pytest -p no:cacheprovider -c {ROOT}/pyproject.toml {ROOT}/tests/models/test_losses.py -k focal"
    assert "passed" in shell(f"{path}; {tests}", tmp_path)  # those over list_losses()
