"""docs/add-a-kernel.md, followed in a copy of the package: one file in `kernels/any_cpu/`, which no target chooses."""

from __future__ import annotations

from pathlib import Path

from pages import copy_package, new_file, python_blocks, run_copy

PAGE = "docs/add-a-kernel.md"
CHECK = """
from subbyte.tvm_kernels.kernels.any_cpu import plain
from subbyte.tvm_kernels.kernels.registry import choose
from subbyte.tvm_kernels.machines import all_targets

assert row.build is plain.plain, row
targets = all_targets()
chosen = [choose(op, target.features) for target in targets]
assert targets and all(choice.kernel is not None and choice.kernel is not row for choice in chosen)
assert not any("plain" in dict(choice.passed_over) for choice in chosen)  # none of the better ones
print("all is well")
"""


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    file, compare = python_blocks(PAGE)
    package = copy_package(tmp_path)
    (package / new_file(PAGE)).write_text(file, encoding="utf-8")
    assert run_copy(compare + CHECK, tmp_path).rstrip().endswith("all is well")
