"""Why a model is compiled as it is: rules that declined a node, kernel rows passed over, nodes that TVM computes.

    explanation = Explanation()
    compile("m.onnx", "m.subbyte", explain=explanation)
    print(explanation)

It is filled while `compile` works, and keeps what it has where that raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from subbyte.errors import UsageError
from subbyte.tvm_kernels.internal_operators import KERNEL

if TYPE_CHECKING:
    from subbyte.tvm_kernels.operators import Operator

MOST_DECLINED = 10_000  # declines that are kept
LONGEST = 500  # characters of a reason: it quotes names and shapes of the file


class Tensor(Protocol):
    """What an explanation reads of a value."""

    dtype: str
    shape: tuple[int, ...]


class Node(Protocol):
    """What an explanation reads of a node."""

    name: str
    op: str
    domain: str
    outputs: list[str]
    fallback: str | None
    declined: dict[str, str]


class Graph(Protocol):
    """What an explanation reads of the graph that has it."""

    explanation: Explanation | None
    notes: list[str]

    @property
    def values(self) -> Mapping[str, Tensor]: ...

    def order(self) -> Sequence[Node]: ...


@dataclass(frozen=True)
class Fact:
    """What became of a node."""

    node: str
    operator: str  # of ONNX, or between rules `internal.View` and the like

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}): {self._outcome()}"

    def _outcome(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Declined(Fact):
    """A rule whose pattern a node has, and that did not rewrite it."""

    rule: str
    reason: str
    taken_by: str | None = None  # the rule that rewrote the node afterwards

    def _outcome(self) -> str:
        taken = "" if self.taken_by is None else f"; rule '{self.taken_by}' took it"
        return f"rule '{self.rule}' declined: {self.reason}{taken}"


@dataclass(frozen=True)
class InFloat(Fact):
    """A layer that the file gives codes or low-bit weights and that is computed in float32; `--strict` refuses it."""

    reason: str

    def _outcome(self) -> str:
        return f"computed in float32: {self.reason}"


@dataclass(frozen=True)
class RowVerdict(Fact):
    """A row of the kernel table for an operator and its operands: chosen, or passed over with the reason."""

    kernel: str
    reason: str | None  # None: chosen

    def _outcome(self) -> str:
        return f"kernel '{self.kernel}' " + ("chosen" if self.reason is None else f"passed over: {self.reason}")


@dataclass(frozen=True)
class ByTVM(Fact):
    """A node without a kernel row: compiled by TVM, or first replaced by the body of its ONNX schema."""

    makes: str  # type and shape of its first output
    reason: str
    replaced: bool = False

    def _outcome(self) -> str:
        becomes = "replaced by the body of its definition" if self.replaced else f"compiled by TVM to {self.makes}"
        return f"{becomes}: {self.reason}"


class Explanation:
    """What was declined and passed over in one compilation; each thing once, at most MOST_DECLINED declines."""

    def __init__(self) -> None:
        self.notes: list[str] = []  # about the file as a whole
        self.more = False  # whether declines were left out
        self._declined: dict[tuple[str, str, str], Declined] = {}
        self._open: dict[tuple[str, str], set[str]] = {}  # rules that declined a node since one last took it
        self._in_float: dict[str, InFloat] = {}
        self._kernels: dict[tuple[str, str, str], RowVerdict] = {}
        self._by_tvm: dict[tuple[str, str], ByTVM] = {}
        self._places: dict[str, int] = {}  # of names of nodes, in the order of the file
        self._served: set[str] = set()  # ONNX operators that rules are for

    # ---- what it says ----

    @property
    def declined(self) -> tuple[Declined, ...]:
        """Rules that declined, nodes in the order of the file."""
        return tuple(sorted(self._declined.values(), key=self._place))

    @property
    def in_float(self) -> tuple[InFloat, ...]:
        """Low-bit layers that are computed in float32."""
        return tuple(self._in_float.values())

    @property
    def kernels(self) -> tuple[RowVerdict, ...]:
        """Kernel rows of every operator, in the order in which they run; of each the most preferred row first."""
        return tuple(self._kernels.values())

    @property
    def by_tvm(self) -> tuple[ByTVM, ...]:
        """Nodes without a kernel row, in the order in which they run."""
        return tuple(self._by_tvm.values())

    def lines(self) -> list[str]:
        """One line for each fact, those of a node together, in the order of the file."""
        facts: list[Fact] = [*self._declined.values(), *self._in_float.values()]
        facts = sorted([*facts, *self._by_tvm.values(), *self._kernels.values()], key=self._place)
        more = [f"more rules declined: the first {MOST_DECLINED:,} are listed"] if self.more else []
        return [f"file: {note}" for note in self.notes] + [str(fact) for fact in facts] + more

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON data."""
        return {
            "notes": list(self.notes),
            "declined": [asdict(fact) for fact in self.declined],
            "in_float": [asdict(fact) for fact in self.in_float],
            "kernels": [asdict(fact) for fact in self.kernels],
            "by_tvm": [asdict(fact) for fact in self.by_tvm],
            "more": self.more,
        }

    def _place(self, fact: Fact) -> int:
        return self._places[fact.node]

    # ---- what it is told ----

    def follow(self, graph: Graph) -> None:
        """Record the lowering of this graph, whose nodes are still those of the file; raises UsageError if used."""
        if self._places:
            raise UsageError("this Explanation holds another compilation; give each compile a new Explanation()")
        for node in graph.order():
            self._place_of(node)
        graph.explanation, self.notes = self, graph.notes

    def rule_declined(self, rule: str, node: Node, reason: str) -> None:
        """A rule did not rewrite a node; the last reason counts."""
        of = self._place_of(node), _operator(node)
        key = (*of, rule)
        if key not in self._declined and len(self._declined) == MOST_DECLINED:
            self.more = True
            return
        self._declined[key] = Declined(*key, _short(reason))
        self._open.setdefault(of, set()).add(rule)

    def rule_took(self, rule: str, node: Node) -> None:
        """A rule rewrote a node, which others may have declined."""
        of = self._place_of(node), _operator(node)
        for other in self._open.pop(of, ()):
            key = (*of, other)
            if other == rule:
                self._declined.pop(key, None)
            elif key in self._declined:
                self._declined[key] = replace(self._declined[key], taken_by=rule)

    def falls_back(self, graph: Graph) -> None:
        """Record which products are computed in float32, when all of them are known."""
        for node in graph.order():
            if node.fallback:
                name = self._place_of(node)
                self._in_float[name] = InFloat(name, _operator(node), _short(node.fallback))

    def rows_for(self, node: Node, operator: Operator, features: frozenset[str]) -> None:
        """A kernel is chosen for an operator, or no row serves it."""
        from subbyte.tvm_kernels.kernels.registry import verdicts

        facts = operator.facts()
        operands = f" of {facts.activation or 'float32'} and {facts.weights}" if facts.weights != "-" else ""
        name, what = self._place_of(node), f"{operator.kind}{operands}"
        for row, reason in verdicts(operator, features):
            self._kernels[name, what, row.name] = RowVerdict(name, what, row.name, reason and _short(reason))

    def tvm_computes(self, graph: Graph, node: Node) -> None:
        """TVM compiles a node that no rule took."""
        rules = ", ".join(f"'{rule}'" for rule in node.declined)
        why = f"declined by {rules}" if rules else f"no rule handles this {node.op}"
        if node.op not in self._served:
            why = f"no rule or kernel is for {_operator(node)}"
        self._without_kernel(graph, node, why, replaced=False)

    def replaced(self, graph: Graph, node: Node, why: str) -> None:
        """The body of its definition is put in the place of a node, for rules and TVM to compile."""
        self._without_kernel(graph, node, why, replaced=True)

    def rules_are_for(self, operators: Iterable[str]) -> None:
        """A table of rules is applied, for nodes of these operators."""
        self._served.update(operators)

    def _without_kernel(self, graph: Graph, node: Node, why: str, replaced: bool) -> None:
        output = next(graph.values[name] for name in node.outputs if name)
        key = self._place_of(node), _operator(node)
        self._by_tvm[key] = ByTVM(*key, f"{output.dtype} {list(output.shape)}", _short(why), replaced)

    def _place_of(self, node: Node) -> str:
        self._places.setdefault(node.name, len(self._places))
        return node.name


def _operator(node: Node) -> str:
    return node.op if node.domain in ("", KERNEL) else f"{node.domain}.{node.op}"


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST else reason[: LONGEST - 3] + "..."
