"""Emits an operator's `Epilogue` inside any kernel: float32 steps in order on each vector of channels, then its stores.

    with T.prim_func():
        signature = Signature()
        ...                                             # the kernel's own parameters
        epilogue = EpilogueEmitter(op.epilogue, rows, columns, signature)
        ...
        epilogue.emit(accumulator, row, column)         # int32 or float32, a scalar or a vector of channels
    Built(function, signature.parameters)

Products pass a fence, so that none is fused with the addition after it (code_generator.py). Where bits are stored, the
calls for one row must come in ascending order of columns, and from one tile for each word of 32 channels: the call at a
multiple of 32 starts the word and clears the bits left over, the others add to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.sym import Analyzer
from tvm.tirx import IntImm, Ramp

from subbyte.errors import CompileError
from subbyte.tvm_kernels.kernels.tir.code_generator import current_code_generator, unfused
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

LINE_FLOATS = 16  # in a cache line
PREFETCH_TO_WRITE = (1, 3, 1)  # llvm.prefetch: for a write, to the nearest cache, data


@dataclass(frozen=True)
class Place:
    """Where a vector of channels stands in the output."""

    row: Any
    column: Any
    lanes: int

    def index(self) -> Any:
        return self.column if self.lanes == 1 else Ramp(self.column, 1, self.lanes)


Transform = Callable[[Any, Place], Any]
EmitStore = Callable[[Any, Place], None]


class EpilogueEmitter:
    """Declares what an epilogue needs after the kernel's own parameters, and emits it for any part of the output.

    rows, columns: of the output, [rows, columns]. `x86` packs bits with movmsk, which rows for AVX2 and up may ask for.
    """

    def __init__(self, epilogue: Epilogue, rows: int, columns: int, signature: Signature, *, x86: bool = False) -> None:
        self._rows, self._columns, self._x86 = rows, columns, x86
        self._signature = signature
        self._functions: FloatFunctions | None = None
        self._in_c = current_code_generator() == "c"
        steps = _without_idle_relu(epilogue) if self._in_c else epilogue.steps
        self._wide: list[Any] = []  # float32 tensors of the output's shape that are read or written
        self._steps = [_STEPS[type(step)](self, step) for step in steps]
        several = [index for index, step in enumerate(steps) if not isinstance(step, READ_ONCE)]
        self._held = set(several[1:])
        self._stores = [_STORES[type(store)](self, index, store) for index, store in enumerate(epilogue.stores)]

    def emit(self, value: Any, row: Any, column: Any) -> None:
        """Apply the steps to `value`, int32 or float32 of consecutive channels from `column` of `row`, and store it."""
        lanes = lanes_of(value)
        place = Place(row, column, lanes)
        if str(value.ty.dtype).startswith("int"):
            value = T.Cast(vector_type("float32", lanes), value)
        for index, step in enumerate(self._steps):
            value = step(_held(value, lanes) if index in self._held else value, place)
        value = T.bind(value)
        for store in self._stores:
            store(value, place)

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
        """Ask for the cache lines of `count` channels from `column` of `row`, which a later call will read or write."""
        for buffer in self._wide:
            for first in range(0, count, LINE_FLOATS):
                address = T.address_of(buffer[row, column + first])
                T.evaluate(T.call_intrin("", "tirx.prefetch", address, *map(T.int32, PREFETCH_TO_WRITE)))

    # ---- steps: each declares its parameters once and returns what it does to a vector ----

    def _vector(self, role: str, values: Any) -> Callable[[Place], Any]:
        """A float32 constant by channel, [columns] or [1]."""
        array = np.ascontiguousarray(values, np.float32).reshape(-1)
        if array.size not in (1, self._columns):
            raise CompileError(f"{role} has {array.size} values, expected 1 or {self._columns}, one for each channel")
        buffer = self._signature.constant(role, array)
        if array.size == 1 and self._columns != 1:
            return lambda place: splat(buffer[0], place.lanes)
        return lambda place: buffer[place.index()]

    def _tensor(self, name: str) -> Callable[[Place], Any]:
        buffer = self._signature.input(name, (self._rows, self._columns), "float32")
        self._wide.append(buffer)
        return lambda place: buffer[place.row, place.index()]

    def scale(self, step: Scale) -> Transform:
        values = self._vector("scale", step.values)
        return lambda y, place: unfused(y * values(place))

    def bias(self, step: Bias) -> Transform:
        values = self._vector("bias", step.values)
        return lambda y, place: y + values(place)

    def row_scale(self, step: RowScale) -> Transform:
        buffer = self._signature.input(step.tensor, (self._rows,), "float32")
        return lambda y, place: unfused(y * splat(buffer[place.row], place.lanes))

    def combine(self, step: Combine) -> Transform:
        values = self._tensor(step.tensor)
        operations: dict[str, Transform] = {
            "add": lambda y, place: y + values(place),
            "subtract": lambda y, place: y - values(place),
            "multiply": lambda y, place: unfused(y * values(place)),
        }
        return operations[step.op]

    def activate(self, step: Activate) -> Transform:
        if self._functions is None and step.function != "relu":
            self._functions = FloatFunctions(self._signature.constant("coefficients", TABLE))
        functions = self._functions or FloatFunctions(None)
        return lambda y, place: unfused(functions.activation(step.function, y))

    def clip(self, step: Clip) -> Transform:
        bounds = self._signature.constant("clip", np.array([step.low, step.high], np.float32))
        return lambda y, place: at_most(splat(bounds[1], place.lanes), at_least(splat(bounds[0], place.lanes), y))

    def prelu(self, step: PRelu) -> Transform:
        slope = self._vector("slope", step.slope)

        def transform(y: Any, place: Place) -> Any:
            y = T.bind(y)
            return T.Select(y >= number(0, y), y, unfused(y * slope(place)))

        return transform

    # ---- stores: each declares its output and returns what emits the store of a vector ----

    def to_float(self, index: int, _: ToFloat) -> EmitStore:
        output = self._signature.output(index, (self._rows, self._columns), "float32")
        self._wide.append(output)
        return lambda y, place: T.buffer_store(output, y, [place.row, place.index()])

    def to_codes(self, index: int, quantizer: ToCodes) -> EmitStore:
        factor = self._signature.constant("factor", np.array([quantizer.factor], np.float32))
        output = self._signature.output(index, (self._rows, self._columns), "uint8")

        def store(y: Any, place: Place) -> None:
            by = splat(factor[0], place.lanes)
            scaled = y / by if quantizer.divide else y * by
            if self._in_c:
                # Clipping integers is the same, and cheaper than comparing floats where SSAT or the like does it. What
                # saturated at 2^31 has no room for the zero point: clip first.
                level = T.bind(T.call_pure_extern("int32", "subbyte_rint", scaled))
                bottom, top = (IntImm("int32", n) for n in (quantizer.storage.low, quantizer.storage.high))
                code = T.min(T.max(level, bottom), top) + quantizer.storage.zero_point
                T.buffer_store(output, T.Cast("uint8", code), [place.row, place.index()])
                return
            low, high = number(quantizer.storage.low, y), number(quantizer.storage.high, y)
            if place.lanes > 1 and quantizer.storage.zero_point % 2 == 0:
                # Clipping to integers before rounding is the same; adding 1.5 x 2^23 rounds to nearest even and leaves
                # the code in the lowest byte: two instructions fewer than rounding and converting.
                code = T.min(T.max(scaled, low), high) + number(MAGIC + quantizer.storage.zero_point, y)
                integer = reinterpret(vector_type("int32", place.lanes), code)
            else:
                code = T.min(T.max(T.nearbyint(scaled), low), high) + number(quantizer.storage.zero_point, y)
                integer = T.Cast(vector_type("int32", place.lanes), code)
            T.buffer_store(output, T.Cast(vector_type("uint8", place.lanes), integer), [place.row, place.index()])

        return store

    def to_bits(self, index: int, binarizer: ToBits) -> EmitStore:
        threshold = self._vector("threshold", binarizer.threshold)
        words = -(-self._columns // WORD)
        output = self._signature.output(index, (self._rows, words), "uint32")

        def store(y: Any, place: Place) -> None:
            bits = T.bind(packed(y >= threshold(place), place.lanes, self._x86))
            analyzer = Analyzer()
            bit = analyzer.simplify(place.column % WORD)
            word = place.column // WORD
            if isinstance(bit, IntImm) and int(bit) == 0:
                T.buffer_store(output, bits, [place.row, word])
                return
            # Loading from a word not yet written is harmless: Select takes 0 then.
            before = output[place.row, word]
            if not isinstance(bit, IntImm):
                before = T.Select(bit == 0, T.uint32(0), before)
            T.buffer_store(output, before | T.shift_left(bits, T.Cast("uint32", bit)), [place.row, word])
            if not analyzer.can_prove(bit + place.lanes <= WORD):
                # A vector across two words: only where a group of channels does not start at a word.
                with T.If(bit + place.lanes > WORD), T.Then():
                    rest = T.shift_right(bits, T.Cast("uint32", WORD - bit))
                    T.buffer_store(output, rest, [place.row, word + 1])

        return store


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
    places = constants("uint32", [1 << lane for lane in range(lanes)])
    chosen = T.Select(condition, places, splat(T.uint32(0), lanes))
    return T.call_llvm_pure_intrin("uint32", "llvm.vector.reduce.or", chosen)


def _without_idle_relu(epilogue: Epilogue) -> tuple[Step, ...]:
    """The steps without a last ReLU that clipping to codes from 0 on repeats."""
    steps, stores = epilogue.steps, epilogue.stores
    relu = bool(steps) and isinstance(steps[-1], Activate) and steps[-1].function == "relu"
    if relu and all(isinstance(store, ToCodes) and store.storage.low >= 0 and store.factor > 0 for store in stores):
        return steps[:-1]
    return steps


# Vectors as wide as one compare; LLVM turns compare + movmsk into one mask move on AVX-512.
_MOVMSK = {
    32: ("int8", "llvm.x86.avx2.pmovmskb"),
    16: ("int8", "llvm.x86.sse2.pmovmskb.128"),
    8: ("int32", "llvm.x86.avx.movmsk.ps.256"),
    4: ("int32", "llvm.x86.sse.movmsk.ps"),
}


def _held(value: Any, lanes: int) -> Any:
    """The value from a register: TVM's code generator writes a bound one out wherever it is read, chains 2^n times."""
    register = T.alloc_buffer((lanes,), "float32")
    place = 0 if lanes == 1 else Ramp(0, 1, lanes)
    T.buffer_store(register, value, [place])
    return register[place]


READ_ONCE = (Scale, Bias, RowScale, Combine)  # steps that read their value once

# To add a step or a store: a class in operators/epilogue.py, a method above, a line here.
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
