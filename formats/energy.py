"""Published energy of each operation that modelled energy counts, and the operations of one multiply-accumulate.

Table: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, 45 nm, 0.9 V. Shifts: You et
al., "ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from subbyte.errors import FormatError

# pJ per operation
OPERATIONS_PJ = {
    "int8 add": 0.03,
    "int8 multiply": 0.2,
    "int32 add": 0.1,
    "int32 multiply": 3.1,
    "float16 add": 0.4,
    "float16 multiply": 1.1,
    "float32 add": 0.9,
    "float32 multiply": 3.7,
    "8-bit shift": 0.024,
    "32-bit shift": 0.13,
    "32-bit xor": 0.1,  # no published figure: that of an int32 add, an upper bound
    "8 KB table read": 10.0,  # one entry: a 64-bit access
    "32-bit popcount": 0.1,  # no published figure: an adder tree has about as many full adders as an int32 add
}


# Operations for each output element, besides its multiply-accumulates; the default.
ELEMENTWISE: Mapping[str, float] = {"float32 multiply": 1, "float32 add": 1}


def wrong_operations(operations: Any) -> str | None:
    """One clause on what is wrong with counts by operation; None for positive counts of operations of the table."""
    if not isinstance(operations, Mapping):
        return f"{operations!r}: expected a mapping of operations to counts"
    for operation, count in operations.items():
        number = isinstance(count, int | float) and not isinstance(count, bool) and 0 < count < inf
        if operation not in OPERATIONS_PJ or not number:
            return (
                f"{count!r} of operation '{operation}': expected a positive number of {', '.join(OPERATIONS_PJ)}; add "
                "a new operation with its energy to formats/energy.py"
            )
    return None


@dataclass(frozen=True)
class PerMac:
    """The operations of one multiply-accumulate, and the count of each.

    Raises FormatError for an operation without a published energy, and for anything but pairs of operation and count.
    """

    operations: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        pairs = self.operations
        if not isinstance(pairs, tuple) or not all(isinstance(one, tuple) and len(one) == 2 for one in pairs):
            raise FormatError(
                f"a multiply-accumulate of {pairs!r}: expected pairs of operation and count; PerMac.of takes a mapping"
            )
        wrong = wrong_operations(dict(pairs))
        if wrong:
            raise FormatError(f"a multiply-accumulate of {wrong}")
        if not self.operations:
            raise FormatError("a multiply-accumulate without operations; name at least one (formats/energy.py)")

    @classmethod
    def of(cls, counts: Mapping[str, float]) -> PerMac:
        """From the count of each operation."""
        if not isinstance(counts, Mapping):
            raise FormatError(f"a multiply-accumulate of {wrong_operations(counts)}")
        return cls(tuple(counts.items()))


# Integer levels with activations of at most 8 bits; real levels (LOOK_UP) with float32 activations.
MULTIPLY = PerMac.of({"int8 multiply": 1, "int32 add": 1})
ADD = PerMac.of({"int32 add": 1})
SHIFT = PerMac.of({"32-bit shift": 1, "int32 add": 1})
LOOK_UP = PerMac.of({"8 KB table read": 1, "float32 multiply": 1, "float32 add": 1})
# Products of two float32 tensors, and of two binary tensors, 32 values at a time.
FLOAT = PerMac.of({"float32 multiply": 1, "float32 add": 1})
XOR_POPCOUNT = PerMac.of({"32-bit xor": 1 / 32, "32-bit popcount": 1 / 32, "int32 add": 1 / 32})
