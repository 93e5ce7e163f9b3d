"""Multiply-add instructions of x86 as data, for the product builder (product.py).

Every instruction takes four bytes of activations, broadcast, and a vector of weights with four bytes for each output
channel: four 8-bit pairs, two 16-bit pairs, or one word of 32 bits. To add an instruction, add a value here and a row
in dot.py or binary.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Broadcast, IntImm

from subbyte.tvm_kernels.kernels.tir.vectors import constants, reinterpret

STEP_BYTES = 4  # of activations, multiplied by one instruction for each output channel


@dataclass(frozen=True)
class Instruction:
    """An instruction, or a few, that add products of activations and weights to int32 sums of `lanes` channels.

    widened: bytes that an 8-bit level takes in the operands, 1 or 2. operations: micro-operations of `accumulate`.
    near_tile, far_tile: output positions x vectors of channels whose accumulators stay in registers, for matrix
    products whose panel of weights stays in the first-level cache, and for the rest (less weight traffic).
    accumulate(sum, activations, weights): operands are int8 vectors of 4 * lanes, sum is an int32 vector.
    lookup(table, indices): 16 int8 values by uint8 indices.
    """

    lanes: int
    widened: int
    operations: int
    near_tile: tuple[int, int]
    far_tile: tuple[int, int]
    accumulate: Callable[[Any, Any, Any], Any]
    lookup: Callable[[list[int], Any], Any]

    @property
    def vector_bytes(self) -> int:
        return STEP_BYTES * self.lanes


def _call(dtype: str, name: str, *operands: Any) -> Any:
    return T.call_llvm_pure_intrin(dtype, name, *operands)


def _lookup(name: str, bytes_: int) -> Callable[[list[int], Any], Any]:
    """vpshufb: the table of 16 is repeated in each 128-bit lane."""

    def lookup(table: list[int], indices: Any) -> Any:
        repeated = constants("int8", [*table, *[0] * (16 - len(table))] * (bytes_ // 16))
        return _call(f"int8x{bytes_}", name, repeated, reinterpret(f"int8x{bytes_}", indices))

    return lookup


_lookup_512 = _lookup("llvm.x86.avx512.pshuf.b.512", 64)
_lookup_256 = _lookup("llvm.x86.avx2.pshuf.b", 32)


def _vnni(lanes: int) -> Callable[[Any, Any, Any], Any]:
    name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
    return lambda total, a, w: _call(f"int32x{lanes}", name, total, a, w)


def _pairs_of_bytes(lanes: int, multiply: str, add: str) -> Callable[[Any, Any, Any], Any]:
    """Saturating 16-bit sums of two products, then 32-bit sums of two: exact only where no 16-bit sum saturates."""
    ones = Broadcast(IntImm("int16", 1), 2 * lanes)

    def accumulate(total: Any, a: Any, w: Any) -> Any:
        sixteen = _call(f"int16x{2 * lanes}", multiply, a, w)
        return total + _call(f"int32x{lanes}", add, sixteen, ones)

    return accumulate


def _pairs_of_int16(lanes: int, multiply: str) -> Callable[[Any, Any, Any], Any]:
    dtype = f"int16x{2 * lanes}"

    def accumulate(total: Any, a: Any, w: Any) -> Any:
        return total + _call(f"int32x{lanes}", multiply, reinterpret(dtype, a), reinterpret(dtype, w))

    return accumulate


def _xor_popcount(lanes: int) -> Callable[[Any, Any, Any], Any]:
    """Subtracts the number of bits that differ from the sum."""
    dtype = f"int32x{lanes}"

    def accumulate(total: Any, a: Any, w: Any) -> Any:
        return total - T.popcount(T.bitwise_xor(reinterpret(dtype, a), reinterpret(dtype, w)))

    return accumulate


_PMADD_512 = ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512")
_PMADD_256 = ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd")

VNNI_512 = Instruction(16, 1, 1, (6, 4), (14, 2), _vnni(16), _lookup_512)
VNNI_256 = Instruction(8, 1, 1, (6, 2), (6, 2), _vnni(8), _lookup_256)
BYTES_512 = Instruction(16, 1, 3, (6, 4), (12, 2), _pairs_of_bytes(16, *_PMADD_512), _lookup_512)
BYTES_256 = Instruction(8, 1, 3, (4, 2), (4, 2), _pairs_of_bytes(8, *_PMADD_256), _lookup_256)
INT16_512 = Instruction(16, 2, 2, (6, 4), (12, 2), _pairs_of_int16(16, _PMADD_512[1]), _lookup_512)
INT16_256 = Instruction(8, 2, 2, (4, 2), (4, 2), _pairs_of_int16(8, _PMADD_256[1]), _lookup_256)
POPCOUNT_512 = Instruction(16, 1, 3, (6, 4), (14, 2), _xor_popcount(16), _lookup_512)
POPCOUNT_256 = Instruction(8, 1, 10, (4, 2), (4, 2), _xor_popcount(8), _lookup_256)
