"""Weights that stay packed at their own bits in a kernel's constants, and their decoding into workspace.

Columns are cut into panels of 8. A panel is a stream of codes, least significant first: for each step of the reduction
the 8 codes of its columns, which are `code_bits` whole bytes. Levels are decoded with two or three operations where
they are equally spaced or two's complement, else by look-up; a new format needs no change here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.formats import IntegerLevels, LowBitTensor, pack
from subbyte.tvm_kernels.kernels.tir.signature import Signature
from subbyte.tvm_kernels.operators import Product

PANEL = 8  # columns: 8 codes of any width end on a byte

Int32 = npt.NDArray[np.int32]


def smallest_integer(levels: npt.NDArray[Any]) -> str:
    """The smallest signed dtype that can represent all levels."""
    low, high = int(levels.min(initial=0)), int(levels.max(initial=0))
    fits = [bits for bits in (8, 16) if -(1 << bits - 1) <= low and high < 1 << bits - 1]
    return f"int{fits[0] if fits else 32}"


def nbytes(dtype: str) -> int:
    """Bytes of an element."""
    return int(np.dtype(dtype).itemsize)


@dataclass(frozen=True, eq=False)
class WeightPanels:
    """The weight of a product as `groups` matrices of `columns` columns, in panels."""

    op: Product[Any, LowBitTensor]
    groups: int
    columns: int

    @property
    def panels(self) -> int:
        return -(-self.columns // PANEL)

    @property
    def depth(self) -> int:
        return self.op.right.depth

    @property
    def dtype(self) -> str:
        """The smallest signed dtype that can represent all levels minus zero points."""
        return smallest_integer(np.array(self.op.right.limits))

    def levels(self) -> npt.NDArray[Any]:
        """`dtype` [groups, panels * 8, depth], level minus zero point, zero in the padding columns."""
        return self.padded(self.op.right.compact_integers.reshape(-1, self.depth).astype(self.dtype))

    @property
    def group_size(self) -> int:
        """Elements along the depth that share a scale; all of them if scales are not by group."""
        return self.op.group_size or self.depth

    @property
    def scale_groups(self) -> list[tuple[int, int]]:
        """(first, end) along the depth of each group that shares a scale; one group if scales are not by group."""
        size = self.group_size
        return [(start, min(start + size, self.depth)) for start in range(0, self.depth, size)]

    def by_panel(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[groups, panels * 8, scale groups] as flat [groups, panels, scale groups, 8]."""
        split = values.reshape(self.groups, self.panels, PANEL, -1)
        return np.ascontiguousarray(split.transpose(0, 1, 3, 2)).reshape(-1)

    def padded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[groups * columns, n] as [groups, panels * 8, n], zeros in the padding columns."""
        out = np.zeros((self.groups, self.panels * PANEL, values.shape[1]), values.dtype)
        out[:, : self.columns] = values.reshape(self.groups, self.columns, values.shape[1])
        return out

    def starts(self, zero_point: int) -> Int32:
        """The initial value of each sum, which makes a sum of bytes one of levels: -zero_point x sum of weights."""
        return self.by_panel(self.padded(-zero_point * self.op.right.sums(self.group_size))).astype(np.int32)

    def scales(self) -> npt.NDArray[np.float32]:
        """Scales of weights by group, by_panel."""
        return self.by_panel(self.padded(self.op.right.scale.reshape(self.groups * self.columns, -1)))


def weight_of(op: Product[Any, LowBitTensor], groups: int) -> WeightPanels:
    """The weight of `op`, padded to whole panels."""
    return WeightPanels(op, groups, op.right.shape[0] // groups)


def panel_order(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[groups, panels * 8, depth] as flat [groups, panels, depth, 8]."""
    groups, columns, depth = matrix.shape
    return np.ascontiguousarray(matrix.reshape(groups, columns // PANEL, PANEL, depth).transpose(0, 1, 3, 2)).reshape(
        -1
    )


Decode = Callable[[Any, Any, Any], None]


def declare_codes(
    weight: WeightPanels, signature: Signature, byte_of: Callable[[int], int] | None = None
) -> tuple[Decode, str]:
    """Declare packed codes as constants; returns decode(group, panel, target) and the dtype of the levels.

    decode emits target[depth * 8] = level minus zero point of one panel; with `byte_of` the int8 byte_of(level).
    """
    fmt = weight.op.right.format
    bits = fmt.code_bits
    depth = weight.depth
    codes = np.zeros((weight.groups, weight.panels * PANEL, depth), np.uint8)
    codes[:] = fmt.encode(fmt.levels.values[:1])[0]
    codes[:, : weight.columns] = weight.op.right.payload.codes.reshape(weight.groups, weight.columns, depth)
    stream = pack(panel_order(codes)[None], bits).reshape(-1)
    buffer = signature.constant("weight", stream)
    if byte_of is None:
        dtype, level = weight.dtype, _level(fmt.integer_levels, signature)
    else:
        dtype, stored = "int8", [byte_of(level) for level in fmt.integer_levels.by_code.tolist()]
        level = _look_up(stored, dtype, signature)
    zero = weight.op.right.zero_point
    zeros = None
    if zero is not None:
        each = np.asarray(weight.op.right.granularity.expand(zero, weight.op.right.matrix_shape))
        first = each[:, [start for start, _ in weight.scale_groups]]
        zeros = signature.constant("zero point", weight.by_panel(weight.padded(first)).astype(np.int32))

    def decode(group: Any, panel: Any, target: Any) -> None:
        index = T.bind(group * weight.panels + panel)
        begin = T.bind(index * (depth * bits))
        groups = len(weight.scale_groups)
        with T.serial(0, depth) as k:
            loaded = [T.bind(T.Cast("int32", buffer[begin + k * bits + byte])) for byte in range(bits)]
            for n in range(PANEL):
                value = level(_code(loaded, n * bits, bits))
                if zeros is not None:
                    value = value - zeros[(index * groups + k // weight.group_size) * PANEL + n]
                T.buffer_store(target, T.Cast(dtype, value), [k * PANEL + n])

    return decode, dtype


def _code(loaded: list[Any], first_bit: int, bits: int) -> Any:
    """The int32 code of `bits` bits at `first_bit` of the bytes loaded."""
    byte, shift = divmod(first_bit, 8)
    value = loaded[byte] if shift == 0 else T.shift_right(loaded[byte], IntImm("int32", shift))
    if shift + bits > 8:
        value = value | T.shift_left(loaded[byte + 1], IntImm("int32", 8 - shift))
    if shift + bits == 8:
        return value
    return value & IntImm("int32", (1 << bits) - 1)


def _level(levels: IntegerLevels, signature: Signature) -> Callable[[Any], Any]:
    """code -> level, int32."""
    if levels.line is not None:
        first, step = levels.line
        return lambda code: (code if step == 1 else code * step) + first
    if levels.twos_complement:
        half = 1 << levels.code_bits - 1
        return lambda code: (code ^ IntImm("int32", half)) - half
    return _look_up(levels.by_code.tolist(), smallest_integer(levels.values), signature)


def _look_up(values: list[int], dtype: str, signature: Signature) -> Callable[[Any], Any]:
    buffer = signature.constant("levels", np.array(values, dtype))
    return lambda code: T.Cast("int32", buffer[code])
