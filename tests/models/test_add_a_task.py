"""docs/add-a-task.md, followed in a copy of the package: its task is trained, checked and scored by its metric."""

from __future__ import annotations

from pathlib import Path

from pages import commands, copy_package, new_file, python_blocks, run_copy

PAGE = "docs/add-a-task.md"
CHECK = """
import shlex
import numpy as np
from click.testing import CliRunner
from subbyte.cli import main
from subbyte.models import get_task

ordinal = get_task("ordinal")
score = ordinal.score((1, 8, 8))
score.add(np.eye(5)[[0, 4, 2]], np.array([0, 1, 4]))
assert score.result() == (0 + 3 + 2) / 3
assert ordinal.chance(np.zeros((3, 1)), np.array([0, 1, 4])) == (1 + 0 + 3) / 3
for line in ["subbyte tasks", *{lines}]:
    done = CliRunner().invoke(main, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    print(done.output)
"""


def test_the_page_works_as_it_is_written(tmp_path: Path) -> None:
    (block,) = python_blocks(PAGE)
    package = copy_package(tmp_path)
    (package / new_file(PAGE)).write_text(block, encoding="utf-8")
    printed = run_copy(CHECK.replace("{lines}", repr(commands(PAGE, "subbyte train mlp").splitlines())), tmp_path)
    assert "ordinal " in printed
    assert "mean distance, lower is better" in printed
    assert "test mean distance" in printed
    assert "validation_mean_distance" in (tmp_path / "runs" / "ordinal" / "log.csv").read_text()
    assert "mean distance" in printed.split("each stage against torch eval")[1]
