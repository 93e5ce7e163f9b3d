"""The example of docs/add-a-kernel.md runs, and no target can choose it by accident."""

from __future__ import annotations

import re
from pathlib import Path

from subbyte.tvm_kernels.kernels import registry
from subbyte.tvm_kernels.targets import all_targets

PAGE = Path(__file__).parents[2] / "docs" / "add-a-kernel.md"


def test_the_example_runs_and_is_registered_apart() -> None:
    before = list(registry._rows)
    try:
        blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        exec(compile("\n".join(blocks), str(PAGE), "exec"), {"__name__": "example"})
        (added,) = [row for row in registry._rows if row not in before]
        assert added.name == "plain"
        assert not any(added.needs <= target.features for target in all_targets())
    finally:
        registry._rows[:] = before
