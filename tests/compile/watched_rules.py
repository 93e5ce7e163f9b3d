"""Rules that are watched while they are applied: none declines in silence, and every reason can be read."""

from __future__ import annotations

import re
from typing import Any

import pytest

from subbyte.tvm_kernels.explanation import Explanation
from subbyte.tvm_kernels.rewrites.pattern import Rule

# Those that may find a node as they want it, and then have nothing to decline.
DONE = {"window", "binarize", "codes by token", "data movement", "scales"}


def watch(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The rules that from now on do not rewrite a node of their pattern and give no reason."""
    silent: set[str] = set()
    apply = Rule.apply

    def watched(self: Rule, graph: Any, node: Any) -> bool:
        matches = self.pattern.match_node(graph, node, {}) is not None
        before = node.declined.pop(self.name, None)
        done = apply(self, graph, node)
        if matches and not done and self.name not in node.declined:
            silent.add(self.name)
        if before is not None and not matches:
            node.declined[self.name] = before
        return done

    monkeypatch.setattr(Rule, "apply", watched)
    return silent


def assert_readable(explanation: Explanation) -> None:
    """Each reason is one clause, without what only Python prints."""
    for fact in explanation.declined:
        assert re.fullmatch(r"[^\s.;][^\n]{3,}[^.;\s]", fact.reason), fact
        assert not re.search(r"\bNone\b|object at 0x|array\(|dtype\(|np\.", fact.reason), fact
