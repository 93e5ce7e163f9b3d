"""The register of rules: every row is whole, operators' own files bring theirs, and a wrong one is refused."""

from __future__ import annotations

import ast
import re
import sys
import typing
from pathlib import Path

import pytest

from subbyte.dialect.function import all_functions
from subbyte.dialect.names import DOMAIN
from subbyte.dialect.quantize import Quantize
from subbyte.errors import RegistrationError
from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.internal_operators import INTERNAL, INTERNAL_OPERATORS, is_known
from subbyte.tvm_kernels.lowering import stages
from subbyte.tvm_kernels.relax_converters import CONVERTERS, converter
from subbyte.tvm_kernels.rewrites import register
from subbyte.tvm_kernels.rewrites.pattern import Any, Const, Op, Outcome, Rule, apply, rule

ROWS = [row for _, rows in stages() for row in rows]


def takes_x(graph: Graph, node: Node, x: str) -> Outcome:
    return None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.pattern.op}")
def test_every_rule_is_whole(row: Rule) -> None:
    """`rule` accepts it again, and every operator that it is for exists."""
    assert rule(row.name, row.pattern, row.rewrite) == row
    assert all(is_known(domain, op) for domain, op in row.pattern.operators)


def test_an_operator_is_made_in_its_own_file() -> None:
    """Where its rule is; but for operators that rules of several stages and files make."""
    package = Path(operators.__file__).parents[1]
    sources = {file: file.read_text() for file in package.rglob("*.py")}
    elsewhere = {
        kind.__name__
        for kind in operators.operators()
        for file, text in sources.items()
        if re.search(rf"\b{kind.__name__}\(", text) and f"{kind.__module__}.py" != _module(file, package)
    }
    assert elsewhere == MADE_BY_SEVERAL


MADE_BY_SEVERAL = {"Product", "Pool2d", "Elementwise"}


@pytest.mark.parametrize("kind", operators.operators(), ids=lambda kind: kind.__name__)
def test_an_operator_is_made(kind: type[operators.Operator]) -> None:
    """By its own file, outside of its class: one that only its examples make would pass every other test."""
    source = Path(str(sys.modules[kind.__module__].__file__)).read_text()
    assert makes(source, kind.__name__) != (kind.__name__ in MADE_BY_SEVERAL)


def test_an_operator_that_only_its_examples_make_is_found() -> None:
    source = "class Frob:\n    def examples(cls, random):\n        return [Frob()]\n"
    assert not makes(source, "Frob")
    assert makes(source + "def frob(graph):\n    graph.add(Frob())\n", "Frob")


def makes(source: str, kind: str) -> bool:
    """Whether a function outside of the class calls it."""
    outside = [part for part in ast.parse(source).body if not (isinstance(part, ast.ClassDef) and part.name == kind)]
    calls = [call.func for part in outside for call in ast.walk(part) if isinstance(call, ast.Call)]
    return any(isinstance(called, ast.Name) and called.id == kind for called in calls)


def _module(file: Path, package: Path) -> str:
    return ".".join(("subbyte", package.name, *file.relative_to(package).parts))


def test_every_converter_is_for_an_operator_that_exists() -> None:
    assert all(is_known(domain, op) for domain, op in CONVERTERS)
    assert {op for domain, op in CONVERTERS if domain == INTERNAL} <= INTERNAL_OPERATORS.keys()


@pytest.mark.parametrize(
    ("domain", "op", "function", "words"),
    [
        ("", "Signn", len, "a converter is for 'Signn' of domain '', expected an operator of ONNX"),
        (DOMAIN, "View", len, "a converter is for 'View' of domain 'subbyte'"),
        ("", "Sign", len, "'Sign' of domain '' has a converter already"),
        ("", "Floor", 1, "the converter of 'Floor' is 1, expected a function"),
    ],
)
def test_a_wrong_converter_is_refused(domain: str, op: str, function: typing.Any, words: str) -> None:
    before = dict(CONVERTERS)
    with pytest.raises(RegistrationError, match=words):
        converter(domain, op)(function)
    assert before == CONVERTERS


def test_every_function_of_values_has_a_rule() -> None:
    """Else its calls would be compiled by their bodies alone; functions of weights are read before any rule."""
    matched = {row.pattern.op for row in ROWS if row.pattern.domain == DOMAIN}
    assert {function.name for function in all_functions() if function.proto.input[0] != "packed"} <= matched


@pytest.mark.parametrize(
    ("name", "pattern", "words"),
    [
        ("", Op("Relu", Any("x")), "a rule for Relu has no name"),
        ("r", "Relu", "rule 'r': its pattern is 'Relu', expected an Op"),
        ("clip", Op("Clip", Any("y")), "rule 'clip': missing a required argument: 'x'"),
        ("scale", Op("Mul", Any("x"), Const("c")), "rule 'scale': got an unexpected keyword argument 'c'"),
        ("ReLU", Op("ReLU", Any("x")), "rule 'ReLU': its pattern has 'ReLU' of domain '', expected an operator"),
        ("f", Op("Frob", Any("x"), domain=DOMAIN), "rule 'f': its pattern has 'Frob' of domain 'subbyte', expected"),
        ("v", Op("Relu", Op("View", Any("x"))), "rule 'v': its pattern has 'View' of domain '', expected an operator"),
    ],
)
def test_a_wrong_rule_is_refused(name: str, pattern: typing.Any, words: str) -> None:
    with pytest.raises(RegistrationError, match=words):
        rule(name, pattern, to=takes_x)


def test_a_rule_of_an_unknown_stage_is_refused() -> None:
    with pytest.raises(RegistrationError, match="no stage is called 'early'; there are foreign, canonical form"):
        register.rewrite("frob", stage="early", matches=Op("Relu", Any("x")))  # type: ignore[arg-type]


def test_a_rule_from_an_operators_file_joins_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the rows of the table; a call of the dialect is matched by the function, in our domain alone."""
    monkeypatch.setattr(register, "_rules", [])
    seen: list[str] = []

    @register.rewrite("see", stage="products", matches=Op(Quantize, Any("x"), rest=True))
    def see(graph: Graph, node: Node, x: str) -> Outcome:
        seen.append(node.domain)
        return "only looks"

    last = {stage: rows[-1] for stage, rows in stages()}
    assert [stage for stage, row in last.items() if row.rewrite is see] == ["products"]
    graph = Graph("calls", 21)
    for name in "xab":
        graph.add_value(name, "float32", (4,))
    graph.inputs, graph.outputs = ["x"], ["a", "b"]
    graph.add(Node("Quantize", ["x"], ["a"], domain="other"))
    graph.add(Node("Quantize", ["x"], ["b"], domain=DOMAIN))
    apply(graph, [last["products"]])
    assert seen == [DOMAIN]
