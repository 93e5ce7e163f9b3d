"""The base classes of operators, and their register.

To add an operator, add a file to this folder with a frozen dataclass that derives from `Operator`, or from `Fused` if
it has an epilogue, and with the rewrite rule that creates it (rewrites/register.py). Deriving registers the class; one
that lacks a part of PARTS, or `facts` if its `macs` is not 0, or has a wrong part, raises RegistrationError, which
names the part. Its kernel rows are in kernels/. Only Product, Pool2d and Elementwise have their rules in rewrites/:
rules of several stages create them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from inspect import getattr_static
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, cast

import numpy as np

from subbyte.errors import CompileError, RegistrationError
from subbyte.formats.energy import ELEMENTWISE, PerMac, wrong_operations
from subbyte.tvm_kernels.operators.epilogue import Epilogue
from subbyte.tvm_kernels.operators.operands import Array, Tensors

PARTS = ("inputs", "macs", "per_element", "reference", "examples")


@dataclass(frozen=True)
class Facts:
    """An operator's operands, for the report, the manifest and the energy model."""

    activation: str | None = None  # how its left operand is stored; None: as the first tensor that its kernel reads
    weights: str = "-"
    bits_per_weight: float = 32.0
    weight_bytes: int | None = None  # None: the bytes of constants that its kernel reads
    per_mac: PerMac | None = None  # the operations of one multiply-accumulate; None: there are none


@dataclass(frozen=True, eq=False)
class Operator:
    """The computation of a kernel, as plain data; `name` is that of its ONNX node.

    inputs: how many run-time tensors are its own; those of an epilogue (RowScale, Combine) come after them.
    macs: multiply-accumulates of one run. per_element: counts of further operations of formats/energy.py for each
    output element. reference: its arithmetic in NumPy, which every kernel row must equal.
    """

    name: str

    @property
    @abstractmethod
    def inputs(self) -> int: ...

    @property
    @abstractmethod
    def macs(self) -> int: ...

    @property
    @abstractmethod
    def per_element(self) -> Mapping[str, float]: ...

    @abstractmethod
    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        """The outputs as they are stored, one for each store of the epilogue if there is one.

        `inputs`: the own inputs as stored; `tensors`: the run-time tensors of the epilogue, by name.
        """

    @property
    def operands(self) -> tuple[object, ...]:
        """The operands of a product, by which kernel rows are chosen, in addition to the class; else empty."""
        return ()

    @property
    def kind(self) -> str:
        """The operator's name in reports and manifests."""
        return type(self).__name__

    @property
    def sums_are_exact(self) -> bool:
        """Whether the input of its epilogue is exact integers."""
        return False

    def resized(self, rows: int, channels: int) -> Operator:
        """The operator for another shape of the same elements, if it supports any shape."""
        return self

    def facts(self) -> Facts:
        """The facts of its operands; the default is for operators whose `macs` is 0."""
        return Facts()

    def renamed(self, names: Mapping[str, str]) -> Operator:
        """The operator with the run-time tensors of its epilogue renamed."""
        return self

    @classmethod
    @abstractmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        """Small operators, each with a name of its own, on which tests compare the kernel rows with the reference."""

    def __init_subclass__(cls, registers: bool = True) -> None:
        super().__init_subclass__()
        if not registers:
            return
        lacks = [part for part in PARTS if getattr(getattr(cls, part), "__isabstractmethod__", False)]
        if lacks:
            raise RegistrationError(
                f"operator {cls.__name__} has no {', '.join(lacks)}; expected all of {', '.join(PARTS)}. "
                f"Define what is missing in {cls.__module__}"
            )
        for part, (expected, holds) in _EXPECTED.items():
            got = getattr_static(cls, part)
            if not isinstance(got, property) and not holds(getattr(cls, part)):
                raise RegistrationError(f"operator {cls.__name__}: its '{part}' is {got!r}, expected {expected}")
        multiplies = isinstance(getattr_static(cls, "macs"), property) or bool(cls.macs)
        if multiplies and cls.facts is Operator.facts:
            raise RegistrationError(
                f"operator {cls.__name__} has no facts, but its 'macs' is not 0: expected the formats of its operands, "
                f"which the report and the energy model count. Define facts in {cls.__module__}"
            )
        computed = isinstance(getattr_static(cls, "per_element"), property)
        if not computed and (wrong := wrong_operations(cls.per_element)):
            raise RegistrationError(f"operator {cls.__name__}: its 'per_element' is {wrong}")
        if any(known.__name__ == cls.__name__ and known.__module__ != cls.__module__ for known in _register):
            raise RegistrationError(f"operator {cls.__name__} is registered twice; rename the one in {cls.__module__}")
        _register.append(cls)


@dataclass(frozen=True, eq=False)
class Example:
    """An operator, its own inputs as stored, and the run-time tensors of its epilogue by name."""

    operator: Operator
    inputs: tuple[Array, ...]
    tensors: Tensors = field(default_factory=dict)
    exact: bool = True  # whether kernels equal the reference in every bit; else within the tolerance of bundles


def _count(least: int) -> Callable[[Any], bool]:
    return lambda number: type(number) is int and number >= least


# What each part must be, if it is not a property, and whether it is.
_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "inputs": ("a number of tensors, at least 1", _count(1)),
    "macs": ("a number, at least 0", _count(0)),
    "reference": ("a method", callable),
    "examples": ("a class method", callable),
}
_register: list[type[Operator]] = []


class Fused(Operator, registers=False):
    """An operator with an epilogue, into which following elementwise operators are fused."""

    epilogue: Epilogue  # a field of each class that derives from this

    @property
    def per_element(self) -> Mapping[str, float]:
        return ELEMENTWISE

    def with_epilogue(self, epilogue: Epilogue) -> Fused:
        return cast(Fused, replace(cast(Any, self), epilogue=epilogue))

    def renamed(self, names: Mapping[str, str]) -> Operator:
        return self.with_epilogue(self.epilogue.renamed(names))


def operators() -> tuple[type[Operator], ...]:
    """Every operator of this folder, and those that other packages have registered."""
    _import_all()
    return tuple(_register)


@cache
def _import_all() -> None:
    """Import the files of this folder, which register their operators and rules."""
    for module in iter_modules([str(Path(__file__).parent)], f"{__package__}."):
        import_module(module.name)


def run(op: Operator, inputs: Sequence[Array], tensors: Tensors | None = None) -> list[Array]:
    """The outputs of `op` by its reference arithmetic, contiguous, as they are stored (float32, uint8, uint32 bits).

    Outputs are [rows, columns], [batch, rows, columns] or [batch, height, width, channels].
    """
    if len(inputs) != op.inputs:
        raise CompileError(f"operator '{op.name}' takes {op.inputs} tensors of its own, got {len(inputs)}")
    return [np.ascontiguousarray(a) for a in op.reference([np.asarray(a) for a in inputs], tensors or {})]
