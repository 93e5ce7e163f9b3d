"""What every operator is, and the register of them.

To add one, add a file to this folder with a frozen dataclass that derives from `Operator`, or from `Fused` if it has
an epilogue, and with the rewrite rule that makes it (rewrites/register.py). Deriving registers it; a class that lacks a
part of PARTS is refused, naming the part. A kernel row for it goes into kernels/.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, cast

import numpy as np

from subbyte.errors import CompileError, RegistrationError
from subbyte.runtime.manifest import ELEMENTWISE
from subbyte.tvm_kernels.operators.epilogue import Epilogue
from subbyte.tvm_kernels.operators.operands import Array, Tensors

PARTS = ("inputs", "macs", "per_element", "reference")


@dataclass(frozen=True)
class Facts:
    """What the report, the manifest and the energy model say of an operator's operands."""

    activation: str | None = None  # how its left operand is stored; None: as the first tensor that its kernel reads
    weights: str = "-"
    bits_per_weight: float = 32.0
    weight_bytes: int | None = None  # None: the bytes of constants that its kernel reads


@dataclass(frozen=True, eq=False)
class Operator:
    """What a kernel computes, as plain data; `name` is that of its ONNX node.

    inputs: how many run-time tensors are its own; those of an epilogue (RowScale, Combine) come after them.
    macs: multiply-accumulates of one run. per_element: how often each operation of runtime/energy_model.py is done for
    an output element besides. reference: its arithmetic in NumPy, which every kernel row must equal.
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
        """The outputs, one for each form of the epilogue if there is one, as they are stored.

        `inputs`: the own inputs as stored; `tensors`: the run-time tensors of the epilogue, by name.
        """

    @property
    def operands(self) -> tuple[object, ...]:
        """What kernel rows are chosen by, besides the class: the operands of a product."""
        return ()

    @property
    def kind(self) -> str:
        """The operator's name in reports and manifests."""
        return type(self).__name__

    @property
    def sums_are_exact(self) -> bool:
        """Whether its epilogue is given integers, exactly."""
        return False

    def resized(self, rows: int, channels: int) -> Operator:
        """The operator for another layout of the same elements, if it works on any shape."""
        return self

    def facts(self) -> Facts:
        """What is said of its operands; that of an operator without weights."""
        return Facts()

    def renamed(self, names: Mapping[str, str]) -> Operator:
        """The operator with the run-time tensors of its epilogue called otherwise."""
        return self

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[tuple[Operator, tuple[Array, ...]]]:
        """Small ones with their own inputs, on which tests compare its kernel rows with the reference."""
        return ()

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
        if any(known.__name__ == cls.__name__ and known.__module__ != cls.__module__ for known in _register):
            raise RegistrationError(f"operator {cls.__name__} is registered twice; rename the one in {cls.__module__}")
        _register.append(cls)


_register: list[type[Operator]] = []


class Fused(Operator, registers=False):
    """An operator with an epilogue, which elementwise work behind it joins."""

    epilogue: Epilogue  # a field of each class that derives from this

    @property
    def per_element(self) -> Mapping[str, float]:
        return ELEMENTWISE

    def with_epilogue(self, epilogue: Epilogue) -> Fused:
        return cast(Fused, replace(cast(Any, self), epilogue=epilogue))

    def renamed(self, names: Mapping[str, str]) -> Operator:
        return self.with_epilogue(self.epilogue.renamed(names))


def operators() -> tuple[type[Operator], ...]:
    """Every operator of this folder, and those that others have registered."""
    _import_all()
    return tuple(_register)


@cache
def _import_all() -> None:
    """Import the files of this folder, in each of which operators and their rules may be registered."""
    for module in iter_modules([str(Path(__file__).parent)], f"{__package__}."):
        import_module(module.name)


def run(op: Operator, inputs: Sequence[Array], tensors: Tensors | None = None) -> list[Array]:
    """The outputs of `op` by its reference arithmetic, contiguous, as they are stored (float32, uint8, uint32 bits).

    Outputs are [rows, columns], [batch, rows, columns] or [batch, height, width, channels].
    """
    if len(inputs) != op.inputs:
        raise CompileError(f"operator '{op.name}' takes {op.inputs} tensors of its own, got {len(inputs)}")
    return [np.ascontiguousarray(a) for a in op.reference([np.asarray(a) for a in inputs], tensors or {})]
