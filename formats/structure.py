"""A weight made of several low-bit tensors: its parts, and how they combine. `dequantize` is the reference.

    Structure(planes, Sum())                         binary planes, each with its own scales, summed
    Structure((binary, int4), SelectColumns(index))  some columns in one format, the others in another

To add a combination, derive from `Combination`.
A structure is an operand of a product (tvm_kernels/operators/product.py); one without a kernel row is refused by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError, RegistrationError
from subbyte.formats.energy import PerMac
from subbyte.formats.format import get
from subbyte.formats.granularity import PerChannel, PerGroup
from subbyte.formats.tensor import LowBitTensor

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, ...]


class Combination(ABC):
    """How parts become one tensor. Deriving registers the class; one that lacks a part raises RegistrationError."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        every = [name for name, part in vars(Combination).items() if getattr(part, "__isabstractmethod__", False)]
        lacks = [name for name in every if getattr(getattr(cls, name), "__isabstractmethod__", False)]
        if lacks:
            raise RegistrationError(
                f"combination {cls.__name__} has no {', '.join(lacks)}; expected all of {', '.join(every)}. "
                f"Define what is missing in {cls.__module__}"
            )
        COMBINATIONS.append(cls)

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes stored in addition to the parts."""

    @abstractmethod
    def shape(self, parts: Sequence[LowBitTensor]) -> Shape:
        """The shape of the combined tensor; raises FormatError when the shapes of the parts do not match."""

    @abstractmethod
    def values(self, parts: Sequence[LowBitTensor]) -> Float32:
        """The real values of the combined tensor, float32."""

    @classmethod
    @abstractmethod
    def example(cls, random: np.random.Generator) -> Structure:
        """A small weight [rows, columns] of such parts, on which tests check the class."""


COMBINATIONS: list[type[Combination]] = []


@dataclass(frozen=True)
class Sum(Combination):
    """Parts of equal shape, added in order: value = sum over parts m of scale_m x level_m."""

    nbytes = 0

    def shape(self, parts: Sequence[LowBitTensor]) -> Shape:
        for number, part in enumerate(parts):
            if part.shape != parts[0].shape:
                raise FormatError(f"part {number} has shape {part.shape}, expected that of part 0, {parts[0].shape}")
        return parts[0].shape

    def values(self, parts: Sequence[LowBitTensor]) -> Float32:
        return reduce(np.add, (part.dequantize() for part in parts))

    @classmethod
    def example(cls, random: np.random.Generator) -> Structure:
        parts = (_part(random, "binary", 10), _part(random, "binary", 10), _part(random, "ternary", 10, group=4))
        return Structure(parts, cls())


@dataclass(frozen=True, eq=False)
class SelectColumns(Combination):
    """Column k of a matrix [rows, columns] is the next column of part `index[k]`; `index` is uint8 [columns]."""

    index: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.index.nbytes

    def shape(self, parts: Sequence[LowBitTensor]) -> Shape:
        if self.index.dtype != np.uint8 or self.index.ndim != 1:
            raise FormatError(f"index is {self.index.dtype} {self.index.shape}, expected uint8 [columns]")
        if self.index.size and self.index.max() >= len(parts):
            raise FormatError(f"index has part {self.index.max()}, expected 0 to {len(parts) - 1}")
        for number, part in enumerate(parts):
            expected = (parts[0].shape[0], int((self.index == number).sum()))
            if part.shape != expected:
                raise FormatError(f"part {number} has shape {part.shape}, expected {expected} by the index")
        return parts[0].shape[0], self.index.size

    def values(self, parts: Sequence[LowBitTensor]) -> Float32:
        values = np.empty(self.shape(parts), np.float32)
        for number, part in enumerate(parts):
            values[:, self.index == number] = part.dequantize()
        return values

    @classmethod
    def example(cls, random: np.random.Generator) -> Structure:
        index = np.array([0, 0, 1, 0, 1, 0, 0], np.uint8)
        return Structure((_part(random, "binary", 5), _part(random, "int4", 2)), cls(index))


def _part(random: np.random.Generator, fmt: str, columns: int, group: int = 0) -> LowBitTensor:
    """A part of an example: four rows, with a scale for each row or for each group of it."""
    granularity = PerGroup(group) if group else PerChannel()
    scale = random.uniform(0.1, 2, granularity.scale_shape((4, columns)))
    return LowBitTensor.from_levels(get(fmt), random.choice(get(fmt).levels.values, (4, columns)), scale, granularity)


@dataclass(frozen=True, eq=False)
class Structure:
    """A weight of several parts; raises FormatError when their shapes do not match or `combination` is none."""

    parts: tuple[LowBitTensor, ...]
    combination: Combination

    def __post_init__(self) -> None:
        if not isinstance(self.combination, Combination):
            raise FormatError(
                f"a structure is combined by {self.combination!r}, expected a Combination: "
                f"{', '.join(known.__name__ for known in COMBINATIONS)}, or one of your own (formats/structure.py)"
            )
        if not self.parts:
            raise FormatError("a structure has no parts; give at least one low-bit tensor")
        self.combination.shape(self.parts)

    @property
    def shape(self) -> Shape:
        return self.combination.shape(self.parts)

    @property
    def name(self) -> str:
        """In reports: "Sum(binary, binary)"."""
        return f"{type(self.combination).__name__}({', '.join(part.format.name for part in self.parts)})"

    def dequantize(self) -> Float32:
        """The real values, float32 of `shape`: the reference."""
        return self.combination.values(self.parts)

    @property
    def per_mac(self) -> PerMac:
        """The operations of one multiply-accumulate with float32 activations: each stored level is multiplied once."""
        counts: dict[str, float] = {}
        for part in self.parts:
            share = prod(part.shape) / max(1, prod(self.shape))
            for operation, count in part.format.per_mac(None).operations if share else ():
                counts[operation] = counts.get(operation, 0) + share * count
        return PerMac.of(counts)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts and of `combination`."""
        return sum(part.nbytes for part in self.parts) + self.combination.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element, scales and padding included."""
        return 8 * self.nbytes / max(1, prod(self.shape))
