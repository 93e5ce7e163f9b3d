"""The example of docs/add-a-kernel.md runs, and no target chooses it."""

from __future__ import annotations

from typing import Any

from pages import python_blocks

from subbyte.tvm_kernels.kernels import registry
from subbyte.tvm_kernels.targets import all_targets

PAGE = "docs/add-a-kernel.md"


def test_the_example_runs_and_is_registered_apart() -> None:
    before = list(registry._rows)
    try:
        program: dict[str, Any] = {"__name__": "example"}
        exec(compile("\n".join(python_blocks(PAGE)), PAGE, "exec"), program)
        (added,) = [row for row in registry._rows if row not in before]
        assert added.name == "plain"
        chosen = [registry.choose(program["op"], target.features) for target in all_targets()]
        assert all(choice.kernel is not added for choice in chosen)
        assert not any("plain" in dict(choice.passed_over) for choice in chosen)  # none of the better ones
    finally:
        registry._rows[:] = before
