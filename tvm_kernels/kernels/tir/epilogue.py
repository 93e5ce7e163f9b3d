"""Emits an operator's `Epilogue` inside any kernel: float32 steps in order on each vector of channels, then its stores.

    with prim_func("product") as signature:
        ...                                             # the kernel's own parameters
        epilogue = EpilogueEmitter(op.epilogue, rows, columns, signature)
        ...
        epilogue.emit(accumulator, row, column)         # int32 or float32, a scalar or a vector of channels
    return signature.built()

Products pass a fence, so that none is fused with the addition after it (code_generator.py). Where bits are stored, the
calls for one row must be in ascending order of columns, and in one tile for each word of 32 channels: the call at a
multiple of 32 writes the whole word, with its unused bits 0, the others set bits in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.sym import Analyzer
from tvm.tirx import IntImm, Ramp

from subbyte.errors import CompileError
from subbyte.tvm_kernels.kernels.code_generator import current_code_generator, unfused
from subbyte.tvm_kernels.kernels.tir.extremes import at_least, at_most
from subbyte.tvm_kernels.kernels.tir.float_functions import MAGIC, TABLE, FloatFunctions, number
from subbyte.tvm_kernels.kernels.tir.signature import Signature
from subbyte.tvm_kernels.kernels.tir.vectors import constants, lanes_of, reinterpret, splat, vector_type
from subbyte.tvm_kernels.operators import (
    WORD,
    Activate,
    Bias,
    Clip,
    Combine,
    Epilogue,
    PRelu,
    RowScale,
    Scale,
    Step,
    Store,
    ToBits,
    ToCodes,
    ToFloat,
)

LARGEST = 1e38  # values up to it are finite in float32, with room for roundings
LINE_FLOATS = 16  # in a cache line
PREFETCH_TO_WRITE = (1, 3, 1)  # llvm.prefetch: for a write, to the nearest cache, data


@dataclass(frozen=True)
class Position:
    """The position of a vector of channels in the output."""

    row: Any
    column: Any
    lanes: int

    def index(self) -> Any:
        return self.column if self.lanes == 1 else Ramp(self.column, 1, self.lanes)


Transform = Callable[[Any, Position], Any]
EmitStore = Callable[[Any, Position, bool], None]  # whether no value can be NaN


class EpilogueEmitter:
    """Declares the parameters of an epilogue after the kernel's own, and emits it for any part of the output.

    rows, columns: of the output, [rows, columns]. `x86` packs bits with movmsk, for kernel rows that need AVX2 or more.
    """

    def __init__(self, epilogue: Epilogue, rows: int, columns: int, signature: Signature, *, x86: bool = False) -> None:
        self._rows, self._columns, self._x86 = rows, columns, x86
        self._signature = signature
        self._functions: FloatFunctions | None = None
        self._in_c = current_code_generator() == "c"
        steps = _without_redundant_relu(epilogue) if self._in_c else epilogue.steps
        self._never_nan = never_nan(steps)
        self._wide: list[Any] = []  # float32 tensors of the output's shape that are read or written
        self._steps = [_STEPS[type(step)](self, step) for step in steps]
        several = [index for index, step in enumerate(steps) if not isinstance(step, READ_ONCE)]
        self._in_registers = set(several[1:])
        self._stores = [_STORES[type(store)](self, index, store) for index, store in enumerate(epilogue.stores)]

    def emit(self, value: Any, row: Any, column: Any) -> None:
        """Apply the steps to `value`, int32 or float32 of consecutive channels from `column` of `row`, and store it."""
        lanes = lanes_of(value)
        at = Position(row, column, lanes)
        integer = str(value.ty.dtype).startswith("int")
        if integer:
            value = T.Cast(vector_type("float32", lanes), value)
        for index, step in enumerate(self._steps):
            value = step(_in_register(value, lanes) if index in self._in_registers else value, at)
        value = T.bind(value)
        for store in self._stores:
            store(value, at, integer and self._never_nan)

    def emit_channels(self, load: Callable[[int, int], Any], row: Any, column: Any, count: int, lanes: int) -> None:
        """Emit `count` channels from `column` on, in vectors of `lanes` and then of smaller powers of two.

        `load(offset, lanes)` gives the accumulators of channels column + offset and following.
        """
        offset = 0
        while offset < count:
            while lanes > count - offset:
                lanes //= 2
            self.emit(load(offset, lanes), row, column + offset)
            offset += lanes

    def prefetch(self, row: Any, column: Any, count: int) -> None:
        """Prefetch the cache lines of `count` channels from `column` of `row`, which a later call reads or writes."""
        for buffer in self._wide:
            for first in range(0, count, LINE_FLOATS):
                address = T.address_of(buffer[row, column + first])
                T.evaluate(T.call_intrin("", "tirx.prefetch", address, *map(T.int32, PREFETCH_TO_WRITE)))

    # ---- steps: each declares its parameters once and returns its transform of a vector ----

    def _vector(self, role: str, values: Any) -> Callable[[Position], Any]:
        """A float32 constant by channel, [columns] or [1]."""
        array = np.ascontiguousarray(values, np.float32).reshape(-1)
        if array.size not in (1, self._columns):
            raise CompileError(f"{role} has {array.size} values, expected 1 or {self._columns}, one for each channel")
        buffer = self._signature.constant(role, array)
        if array.size == 1 and self._columns != 1:
            return lambda at: splat(buffer[0], at.lanes)
        return lambda at: buffer[at.index()]

    def _tensor(self, name: str) -> Callable[[Position], Any]:
        buffer = self._signature.input(name, (self._rows, self._columns), "float32")
        self._wide.append(buffer)
        return lambda at: buffer[at.row, at.index()]

    def scale(self, step: Scale) -> Transform:
        values = self._vector("scale", step.values)
        return lambda y, at: unfused(y * values(at))

    def bias(self, step: Bias) -> Transform:
        values = self._vector("bias", step.values)
        return lambda y, at: y + values(at)

    def row_scale(self, step: RowScale) -> Transform:
        buffer = self._signature.input(step.tensor, (self._rows,), "float32")
        return lambda y, at: unfused(y * splat(buffer[at.row], at.lanes))

    def combine(self, step: Combine) -> Transform:
        values = self._tensor(step.tensor)
        operations: dict[str, Transform] = {
            "add": lambda y, at: y + values(at),
            "subtract": lambda y, at: y - values(at),
            "multiply": lambda y, at: unfused(y * values(at)),
        }
        return operations[step.op]

    def activate(self, step: Activate) -> Transform:
        if self._functions is None and step.function != "relu":
            self._functions = FloatFunctions(self._signature.constant("coefficients", TABLE))
        functions = self._functions or FloatFunctions(None)
        return lambda y, at: unfused(functions.activation(step.function, y))

    def clip(self, step: Clip) -> Transform:
        bounds = self._signature.constant("clip", np.array([step.low, step.high], np.float32))
        return lambda y, at: at_most(splat(bounds[1], at.lanes), at_least(splat(bounds[0], at.lanes), y))

    def prelu(self, step: PRelu) -> Transform:
        slope = self._vector("slope", step.values)

        def transform(y: Any, at: Position) -> Any:
            y = T.bind(y)
            return T.Select(y >= number(0, y), y, unfused(y * slope(at)))

        return transform

    # ---- stores: each declares its output and returns the function that emits the store of a vector ----

    def to_float(self, index: int, _: ToFloat) -> EmitStore:
        output = self._signature.output(index, (self._rows, self._columns), "float32")
        self._wide.append(output)
        return lambda y, at, _: T.buffer_store(output, y, [at.row, at.index()])

    def to_codes(self, index: int, quantizer: ToCodes) -> EmitStore:
        factor = self._signature.constant("factor", np.array([quantizer.factor], np.float32))
        output = self._signature.output(index, (self._rows, self._columns), "uint8")

        finite = bool(np.isfinite(quantizer.factor)) and quantizer.factor != 0  # 0 / 0 is NaN

        def store(y: Any, at: Position, never_nan: bool) -> None:
            by = splat(factor[0], at.lanes)
            scaled = y / by if quantizer.divide else y * by
            if self._in_c:
                # Clipping integers gives the same result, and is cheaper than comparing floats where SSAT or the like
                # does it. Adding the zero point to a value saturated at 2^31 would overflow: clip first.
                rint = "subbyte_rint_number" if never_nan and finite else "subbyte_rint"
                level = T.bind(T.call_pure_extern("int32", rint, scaled))
                bottom, top = (IntImm("int32", n) for n in (quantizer.storage.low, quantizer.storage.high))
                code = T.min(T.max(level, bottom), top) + quantizer.storage.zero_point
                T.buffer_store(output, T.Cast("uint8", code), [at.row, at.index()])
                return
            low, high = number(quantizer.storage.low, y), number(quantizer.storage.high, y)
            if at.lanes > 1 and quantizer.storage.zero_point % 2 == 0:
                # Clipping to integers before rounding gives the same result; adding 1.5 x 2^23 rounds to nearest even
                # with the code in the lowest byte: two instructions fewer than rounding and converting.
                code = T.min(T.max(scaled, low), high) + number(MAGIC + quantizer.storage.zero_point, y)
                integer = reinterpret(vector_type("int32", at.lanes), code)
            else:
                code = T.min(T.max(T.nearbyint(scaled), low), high) + number(quantizer.storage.zero_point, y)
                integer = T.Cast(vector_type("int32", at.lanes), code)
            T.buffer_store(output, T.Cast(vector_type("uint8", at.lanes), integer), [at.row, at.index()])

        return store

    def to_bits(self, index: int, binarizer: ToBits) -> EmitStore:
        threshold = self._vector("threshold", binarizer.threshold)
        words = -(-self._columns // WORD)
        output = self._signature.output(index, (self._rows, words), "uint32")

        def store(y: Any, at: Position, _: bool) -> None:
            bits = T.bind(packed(y >= threshold(at), at.lanes, self._x86))
            analyzer = Analyzer()
            bit = analyzer.simplify(at.column % WORD)
            word = at.column // WORD
            if isinstance(bit, IntImm) and int(bit) == 0:
                T.buffer_store(output, bits, [at.row, word])
                return
            # Loading from a word that is not yet written is harmless: Select then returns 0.
            before = output[at.row, word]
            if not isinstance(bit, IntImm):
                before = T.Select(bit == 0, T.uint32(0), before)
            T.buffer_store(output, before | T.shift_left(bits, T.Cast("uint32", bit)), [at.row, word])
            if not analyzer.can_prove(bit + at.lanes <= WORD):
                # The vector crosses a word boundary: only where a group of channels does not start at one.
                with T.If(bit + at.lanes > WORD), T.Then():
                    rest = T.shift_right(bits, T.Cast("uint32", WORD - bit))
                    T.buffer_store(output, rest, [at.row, word + 1])

        return store


def never_nan(steps: Sequence[Step]) -> bool:
    """Whether the steps give finite numbers on every int32 sum: constants alone bound them."""
    bound = 2.0**31
    for step in steps:
        if isinstance(step, Scale):
            bound *= float(np.max(np.abs(step.values)))
        elif isinstance(step, Bias):
            bound += float(np.max(np.abs(step.values)))
        elif isinstance(step, PRelu):
            bound *= float(np.max(np.abs(step.values), initial=1.0))  # Python's max(1.0, NaN) is 1.0
        elif not (isinstance(step, Activate) and step.function == "relu"):
            return False
        if not bound < LARGEST:  # NaN is not, too
            return False
    return True


def packed(condition: Any, lanes: int, x86: bool) -> Any:
    """A uint32 whose bit i is lane i of a vector of booleans."""
    if lanes == 1:
        return T.Cast("uint32", condition)
    if x86 and lanes in _MOVMSK:
        dtype, name = _MOVMSK[lanes]
        ones, zeros = splat(IntImm(dtype, -1), lanes), splat(IntImm(dtype, 0), lanes)
        mask = T.Select(condition, ones, zeros)
        if dtype == "int32":
            mask = reinterpret(f"float32x{lanes}", mask)
        return T.Cast("uint32", T.call_llvm_pure_intrin("int32", name, mask))
    lane_bits = constants("uint32", [1 << lane for lane in range(lanes)])
    set_bits = T.Select(condition, lane_bits, splat(T.uint32(0), lanes))
    return T.call_llvm_pure_intrin("uint32", "llvm.vector.reduce.or", set_bits)


def _without_redundant_relu(epilogue: Epilogue) -> tuple[Step, ...]:
    """The steps without a last ReLU that has no effect, as every store clips to codes from 0 on."""
    steps, stores = epilogue.steps, epilogue.stores
    relu = bool(steps) and isinstance(steps[-1], Activate) and steps[-1].function == "relu"
    if relu and all(isinstance(store, ToCodes) and store.storage.low >= 0 and store.factor > 0 for store in stores):
        return steps[:-1]
    return steps


# Vectors as wide as one compare; LLVM compiles compare + movmsk to one mask move on AVX-512.
_MOVMSK = {
    32: ("int8", "llvm.x86.avx2.pmovmskb"),
    16: ("int8", "llvm.x86.sse2.pmovmskb.128"),
    8: ("int32", "llvm.x86.avx.movmsk.ps.256"),
    4: ("int32", "llvm.x86.sse.movmsk.ps"),
}


def _in_register(value: Any, lanes: int) -> Any:
    """The value, read from a buffer: TVM repeats a bound expression at each use, 2^n times in a chain."""
    register = T.alloc_buffer((lanes,), "float32")
    index = 0 if lanes == 1 else Ramp(0, 1, lanes)
    T.buffer_store(register, value, [index])
    return register[index]


READ_ONCE = (Scale, Bias, RowScale, Combine)  # steps that read their value once

# To add a step or a store: a class in operators/epilogue.py, a method above, an entry here.
_STEPS: dict[type[Step], Callable[[EpilogueEmitter, Any], Transform]] = {
    Scale: EpilogueEmitter.scale,
    Bias: EpilogueEmitter.bias,
    RowScale: EpilogueEmitter.row_scale,
    Combine: EpilogueEmitter.combine,
    Activate: EpilogueEmitter.activate,
    Clip: EpilogueEmitter.clip,
    PRelu: EpilogueEmitter.prelu,
}
_STORES: dict[type[Store], Callable[[EpilogueEmitter, int, Any], EmitStore]] = {
    ToFloat: EpilogueEmitter.to_float,
    ToCodes: EpilogueEmitter.to_codes,
    ToBits: EpilogueEmitter.to_bits,
}
