"""The kernel table: the operators and CPUs that each row supports, and the function that builds its TIR.

To add a row, write a builder and decorate it:

    @kernel("dot-avx512-vnni", serves=Product[Codes, LowBitTensor], needs={"avx512vnni"}, prefer=100, refuses=refusal)
    def build(op: Product[Codes, LowBitTensor]) -> Built: ...

A row supports (`serves`) one class of operators, of a product also the types of its operands. `refuses(op)` returns
None, or in one clause the reason why this row does not support the operator; the compile report prints the reason.
Among the rows whose `needs` the target has and that do not refuse, the one with the highest `prefer` is chosen. A row
`without_multiplier` is only for CPUs that cannot multiply integers (code_generator.py says whether this one can).

The PrimFunc of a row has only buffer parameters, in the order of `Built.parameters`, and a body with at most one
outermost `parallel` loop: its extent is the number of tiles that the runtime distributes over threads (for nested
parallel loops see TILES of abi.py). It allocates only buffers of less than 1,024 bytes; larger scratch is a Workspace
parameter, of which each thread has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import numpy.typing as npt

from subbyte.errors import CompileError, RegistrationError
from subbyte.runtime.features import FEATURES
from subbyte.tvm_kernels.kernels.code_generator import cpu_multiplies
from subbyte.tvm_kernels.operators import Operator

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

Array = npt.NDArray[Any]
Served = TypeVar("Served", bound="Operator")


OWN_INPUTS = ("$0", "$1")  # names of an operator's own inputs in kernels, in order; no ONNX value has such a name


@dataclass(frozen=True)
class Input:
    """A run-time tensor: one of OWN_INPUTS, or the name in a RowScale or Combine step of the epilogue."""

    tensor: str


@dataclass(frozen=True, eq=False)
class Constant:
    """An array packed for this kernel at compile time; it goes into weights.bin, aligned to 64 bytes."""

    role: str  # "weight", "scale", "bias", ...
    values: Array


@dataclass(frozen=True)
class Output:
    """The operator's output of that index, in the order of its epilogue's stores."""

    index: int = 0


@dataclass(frozen=True)
class Workspace:
    """Scratch bytes of one thread, aligned to 64 bytes; uint8 buffer of that length."""

    nbytes: int


Parameter = Input | Constant | Output | Workspace


@dataclass(frozen=True, eq=False)
class Built:
    """A kernel built for one operator."""

    function: PrimFunc
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, eq=False)
class KernelRow:
    """A row of the table."""

    name: str
    serves: Any  # an operator's class, or Product[left, right]
    needs: frozenset[str]
    prefer: int
    refuses: Callable[[Any], str | None]
    build: Callable[[Any], Built]
    without_multiplier: bool = False  # only for CPUs that cannot multiply integers

    @property
    def pattern(self) -> tuple[type, tuple[Any, ...]]:
        """The operator's class, and the types of its operands."""
        return get_origin(self.serves) or self.serves, get_args(self.serves)

    def matches(self, op: Operator) -> bool:
        """Whether the row is for this operator and its operands."""
        operator, operands = self.pattern
        return type(op) is operator and all(map(isinstance, op.operands, operands))

    def lacks(self, op: Operator, features: frozenset[str]) -> str | None:
        """Why the row does not support a matching operator on a CPU with these features; None where it does."""
        return self.lacks_of_cpu(features) or self.refuses(op)

    def lacks_of_cpu(self, features: frozenset[str]) -> str | None:
        """Why the row is not for a CPU with these features, whatever the operator; None where it is."""
        missing = self.needs - features
        if missing:
            return f"needs {', '.join(sorted(missing))}"
        return "for CPUs without a multiplier" if self.without_multiplier and cpu_multiplies() else None

    def __str__(self) -> str:
        operator, operands = self.pattern
        types = [" | ".join(one.__name__ for one in get_args(kind) or (kind,)) for kind in operands]
        return f"{self.name} for {operator.__name__}" + (f"[{', '.join(types)}]" if types else "")


_rows: list[KernelRow] = []


def kernel(
    name: str,
    *,
    serves: type[Served],
    needs: Iterable[str] = (),
    prefer: int = 0,
    refuses: Callable[[Served], str | None] = lambda op: None,
    without_multiplier: bool = False,
) -> Callable[[Callable[[Served], Built]], Callable[[Served], Built]]:
    """Register a builder as a row; see the module's docstring.

    Raises RegistrationError for a row without a name, for no operator or operands that it cannot have, for CPU features
    that are unknown, and for a name that another row for the same operands has.
    """
    if not isinstance(name, str) or not name:
        raise RegistrationError(f"a kernel row for {serves} has no name, got {name!r}; reports and manifests need one")
    operator = get_origin(serves) or serves
    if not (isinstance(operator, type) and issubclass(operator, Operator)):
        raise RegistrationError(f"kernel row '{name}' serves {serves}, which is not an operator: use one of operators/")

    _check_operands(name, operator, get_args(serves))
    unknown = sorted(set(needs) - FEATURES.keys())
    if unknown:
        raise RegistrationError(
            f"kernel row '{name}' needs the CPU feature '{unknown[0]}', which no target can have, expected some of "
            f"{', '.join(FEATURES)}; add a new feature to runtime/features.py"
        )
    if type(prefer) is not int:
        raise RegistrationError(f"kernel row '{name}': its 'prefer' is {prefer!r}, expected an integer")

    def add(build: Callable[[Served], Built]) -> Callable[[Served], Built]:
        for part, got in (("refuses", refuses), ("build", build)):
            if not callable(got):
                raise RegistrationError(f"kernel row '{name}': its '{part}' is {got!r}, expected a function")
        if any((row.name, row.serves) == (name, serves) for row in _rows):
            raise RegistrationError(f"kernel row '{name}' for {serves} is registered twice; rename one of the two")
        _rows.append(KernelRow(name, serves, frozenset(needs), prefer, refuses, build, without_multiplier))
        return build

    return add


def _check_operands(name: str, operator: type, operands: tuple[Any, ...]) -> None:
    """Every operand is given, and of a type that the operator's type parameter allows."""
    parameters = getattr(operator, "__parameters__", ())
    if len(operands) != len(parameters):
        raise RegistrationError(
            f"kernel row '{name}' serves {operator.__name__} with {len(operands)} types of operands, expected "
            f"{len(parameters)}, as in Product[Codes, LowBitTensor]"
        )
    for parameter, kind in zip(parameters, operands, strict=True):
        allowed = get_args(parameter.__bound__) or (parameter.__bound__,)
        for one in get_args(kind) or (kind,):
            if not (isinstance(one, type) and issubclass(one, allowed)):
                known = ", ".join(kind.__name__ for kind in allowed)
                raise RegistrationError(f"kernel row '{name}': an operand of its 'serves' is {one}, expected {known}")


def rows(op: Operator | type | None = None) -> list[KernelRow]:
    """All rows, those of an operator's class, or those for an operator and its operands; the most preferred first."""
    if op is None:
        found = _rows
    else:
        found = [row for row in _rows if (row.pattern[0] is op if isinstance(op, type) else row.matches(op))]
    return sorted(found, key=lambda row: -row.prefer)


@dataclass(frozen=True, eq=False)
class Choice:
    """The row chosen for an operator, and why each better row was passed over: [(row name, reason)]."""

    kernel: KernelRow
    passed_over: tuple[tuple[str, str], ...]


def choose(op: Operator, features: frozenset[str]) -> Choice:
    """The best row for `op` on a CPU with these features.

    Raises CompileError with the reason of each row when none supports it.
    """
    passed: list[tuple[str, str]] = []
    for row, reason in verdicts(op, features):
        if reason is None:
            return Choice(row, tuple(passed))
        passed.append((row.name, reason))
    listed = "; ".join(f"{name}: {reason}" for name, reason in passed) or _without_rows(op)
    raise CompileError(f"no kernel for '{op.name}' ({op.kind}): {listed}")


def verdicts(op: Operator, features: frozenset[str]) -> Iterator[tuple[KernelRow, str | None]]:
    """Every row for `op`, the most preferred first, with the reason why it is passed over; None for the chosen one."""
    chosen = None
    for row in rows(op):
        reason = row.lacks(op, features)
        if reason is None and chosen is not None:
            reason = f"'{chosen.name}' is preferred"
        elif reason is None:
            chosen = row
        yield row, reason


def _without_rows(op: Operator) -> str:
    """Why no row matches the operator: no row has its class, or none has its operands."""
    known = rows(type(op))
    if not known:
        return "the table has no row for it"
    operands = ", ".join(type(operand).__name__ for operand in op.operands)
    patterns = dict.fromkeys(str(row).split(" for ")[1] for row in known)
    return (
        f"no row is for {type(op).__name__}[{operands}]; there are rows for "
        f"{', '.join(patterns)}: use operands of one of these, or register a row for these (docs/add-a-kernel.md)"
    )
