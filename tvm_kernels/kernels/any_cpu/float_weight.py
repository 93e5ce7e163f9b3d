"""The constant of a product of floats, packed in panels of columns, and the conversion of its vectors to float32.

float32 values   unchanged
integer levels   a byte each, converted
real levels      codes of 1, 2, 4 or 8 bits, packed along the reduction; levels are looked up, and with scales by group
                 multiplied by the scale of their group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.formats import LowBitTensor, pack
from subbyte.tvm_kernels.kernels.any_cpu.float_tile import ColumnPanels, pack_panels
from subbyte.tvm_kernels.kernels.any_cpu.im2col import Matrices
from subbyte.tvm_kernels.kernels.any_cpu.rowwise import at
from subbyte.tvm_kernels.kernels.tir.signature import Signature
from subbyte.tvm_kernels.kernels.tir.vectors import constants, splat, vector_type
from subbyte.tvm_kernels.operators import FloatWeight

Right = Callable[[int, Any], Any]  # (vector of the panel, index along the depth) -> float32 lanes
Panel = Callable[[Any, Any, int], Right]  # (group, first column, columns)


def declare_weight(
    weight: FloatWeight | LowBitTensor, shape: Matrices, cut: ColumnPanels, signature: Signature
) -> Panel:
    """Declare the constants of a weight; returns the function that reads a panel of it."""
    if isinstance(weight, FloatWeight):
        return _converted(weight.values.astype(np.float32), shape, cut, signature)
    if weight.format.levels.integer:
        return _converted(weight.compact_integers.astype(np.int8), shape, cut, signature)
    return _looked_up(weight, shape, cut, signature)


def _panels(
    role: str, values: npt.NDArray[Any], shape: Matrices, cut: ColumnPanels, signature: Signature
) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Declare a constant with values for each column; returns the buffer and start(group, first column) of a panel."""
    matrices = values.reshape(shape.groups, shape.columns, -1)
    packed = np.stack([pack_panels(matrix, cut) for matrix in matrices])
    buffer = signature.constant(role, packed.reshape(-1))
    return buffer, lambda group, column: T.bind(group * packed.shape[1] + column * matrices.shape[2])


def _converted(values: npt.NDArray[Any], shape: Matrices, cut: ColumnPanels, signature: Signature) -> Panel:
    buffer, start = _panels("weight", values, shape, cut, signature)
    lanes = cut.lanes

    def panel(group: Any, column: Any, width: int) -> Right:
        offset = start(group, column)

        def right(v: int, k: Any) -> Any:
            loaded = buffer[at(offset + k * width + v * lanes, lanes)]
            return loaded if values.dtype == np.float32 else T.Cast(vector_type("float32", lanes), loaded)

        return right

    return panel


def _looked_up(weight: LowBitTensor, shape: Matrices, cut: ColumnPanels, signature: Signature) -> Panel:
    levels, lanes = weight.format.levels, cut.lanes
    bits = next(bits for bits in (1, 2, 4, 8) if bits >= levels.code_bits)
    each = 8 // bits
    codes = pack(weight.payload.codes.reshape(weight.matrix_shape), bits)
    buffer, start = _panels("weight", codes, shape, cut, signature)
    level_of = _in_registers(levels.by_code.tolist(), lanes)
    if level_of is None:
        table = signature.constant("levels", levels.by_code)
        level_of = table.__getitem__
    size = weight.group_size
    scales, first_scale = _panels("scale", weight.scale, shape, cut, signature) if size else (None, start)

    def panel(group: Any, column: Any, width: int) -> Right:
        offset = start(group, column)
        scale_offset = first_scale(group, column) if size else None

        def right(v: int, k: Any) -> Any:
            code = buffer[at(offset + k // each * width + v * lanes, lanes)]
            if each > 1:
                shift = T.Cast("uint8", k % each * bits)
                code = T.shift_right(code, splat(shift, lanes)) & splat(T.uint8((1 << bits) - 1), lanes)
            level = level_of(T.Cast(vector_type("int32", lanes), code))
            return level if scales is None else level * scales[at(scale_offset + k // size * width + v * lanes, lanes)]

        return right

    return panel


def _in_registers(table: list[float], lanes: int) -> Callable[[Any], Any] | None:
    """The look-up of at most 16 floats by a vector of int32, by vpermps of AVX-512 or AVX2; None elsewhere."""
    if lanes not in (8, 16) or len(table) > 16:
        return None
    kind, padded = f"float32x{lanes}", table + [0.0] * (16 - len(table))
    name = "llvm.x86.avx512.permvar.sf.512" if lanes == 16 else "llvm.x86.avx2.permps"
    parts = [constants("float32", padded[first : first + lanes]) for first in range(0, 16, lanes)]

    def look_up(index: Any) -> Any:
        found = [T.call_llvm_pure_intrin(kind, name, part, index) for part in parts]
        return found[0] if lanes == 16 else T.Select(index < splat(IntImm("int32", 8), lanes), *found)

    return look_up
