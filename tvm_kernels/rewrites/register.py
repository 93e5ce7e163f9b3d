"""Rules that are registered in the files of operators, so that a new operator changes no table.

    @rewrite("quantize per token", stage="products", matches=Op(QuantizePerToken, Any("x"), outputs=2))
    def quantize_tokens(graph: Graph, node: Node, x: str) -> Outcome: ...

Within a stage they come after the rows of the table (lowering.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar, get_args

from subbyte.errors import RegistrationError
from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.rewrites.pattern import Op, Outcome, Rule, rule

Stage = Literal["foreign", "canonical form", "products", "epilogues", "transposes"]
Rewrite = TypeVar("Rewrite", bound=Callable[..., Outcome])

_rules: list[tuple[Stage, Rule]] = []


def rewrite(name: str, *, stage: Stage, matches: Op) -> Callable[[Rewrite], Rewrite]:
    """Register a rewrite as a rule of a stage; raises RegistrationError as `rule`, and for an unknown stage."""
    if stage not in get_args(Stage):
        raise RegistrationError(f"rule '{name}': no stage is called '{stage}'; there are {', '.join(get_args(Stage))}")

    def add(to: Rewrite) -> Rewrite:
        _rules.append((stage, rule(name, matches, to)))
        return to

    return add


def registered(stage: Stage) -> list[Rule]:
    """The rules of a stage that the files of operators have registered."""
    operators.operators()  # imports every file
    return [row for at, row in _rules if at == stage]
