"""Integer products on a CPU without a multiplier: every column adds partial sums, which its weights' codes look up.

An index is the codes of 4 binary weights, of 2 with two bits, or of 1 with three to five, side by side. For each index
of a tile of rows a table holds the sum of the activations x levels for all its values, made once by shifts, additions
and subtractions; a column's packed weights are the indices of the sums that it adds. Where sums fit in 16 bits, a word
holds those of two rows: additions of words add both.

The accumulation loop is the one over the words of a column's weights, or over columns where tables are for one word: it
loads, shifts, masks and adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels.kernels.any_cpu.im2col import gather, matrices_of
from subbyte.tvm_kernels.kernels.any_cpu.portable import bytes_too_many
from subbyte.tvm_kernels.kernels.code_generator import unfused
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func, view
from subbyte.tvm_kernels.operators import WORD, Bits, Codes, Product

WIDEST_CODE = 5  # bits: tables of at most 32 sums
INDEX_BITS = 4  # of narrower codes several side by side
UNITS = 4  # words of sums of a tile: rows, or pairs of them
TABLE_BYTES = 1 << 11  # with four times as many, ds_cnn takes 0.2% fewer instructions in ternary, and no fewer in pow2
LARGEST_BYTE, LARGEST_HALF = 255, (1 << 15) - 1


@dataclass(frozen=True)
class Indices:
    """How the codes of a format become indices, and indices words."""

    code_bits: int

    @property
    def codes(self) -> int:
        """Codes of an index."""
        return max(1, INDEX_BITS // self.code_bits)

    @property
    def bits(self) -> int:
        return self.codes * self.code_bits

    @property
    def values(self) -> int:
        """Sums of a table."""
        return 1 << self.bits

    @property
    def in_word(self) -> int:
        return WORD // self.bits

    @property
    def weights_in_word(self) -> int:
        return self.in_word * self.codes

    def words(self, length: int) -> int:
        """Words of a run of `length` weights."""
        return -(-length // self.weights_in_word)

    def packed(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
        """uint8 codes [columns, length] as uint32 [columns, words], the first code in the lowest bits."""
        columns, length = codes.shape
        words = self.words(length)
        padded = np.zeros((columns, words * self.weights_in_word), np.uint32)
        padded[:, :length] = codes
        shifts = np.arange(self.weights_in_word, dtype=np.uint32) * self.code_bits
        return np.asarray((padded.reshape(columns, words, -1) << shifts).sum(axis=2, dtype=np.uint32))


@dataclass(frozen=True)
class Tile:
    """The rows whose sums are made together: `units` words of sums, of `lanes` rows each."""

    units: int
    lanes: int
    words: int  # of weights at most between two additions to the sums of 32 bits

    @property
    def rows(self) -> int:
        return self.units * self.lanes


def tile_of(rows: int, run: int, indices: Indices, largest: int) -> Tile:
    """The tile for a matrix of `rows` rows, runs of `run` weights with one scale, and levels of at most `largest`."""
    words = indices.words(run)
    halves = LARGEST_HALF // (LARGEST_BYTE * largest) // indices.weights_in_word  # words whose sums fit in 16 bits
    lanes = 2 if rows > 1 and halves else 1
    units = min(UNITS, rows // lanes)
    units = min(units, -(-rows // (-(-rows // (units * lanes)) * lanes)))  # tiles of equal size
    most = max(1, TABLE_BYTES // (units * indices.in_word * indices.values * 4))
    most = min(most, halves) if lanes == 2 else most
    return Tile(units, lanes, -(-words // -(-words // most)))


def times(value: Any, level: int) -> Any:
    """`value` x a constant, as shifts and additions."""
    shifts = [bit for bit in range(abs(level).bit_length()) if abs(level) >> bit & 1]
    parts = [value if bit == 0 else T.shift_left(value, IntImm("int32", bit)) for bit in shifts]
    if not parts:
        return IntImm("int32", 0)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return IntImm("int32", 0) - total if level < 0 else total


def refuses(op: Product[Codes | Bits, LowBitTensor]) -> str | None:
    """Why the row does not support `op`, or None."""
    if op.right.zero_point is not None:
        return "weights have zero points"
    if op.right.format.code_bits > WIDEST_CODE:
        return f"codes of {op.right.format.name} have more than {WIDEST_CODE} bits"
    return bytes_too_many(op)


@kernel("shift-add", serves=Product[Codes | Bits, LowBitTensor], prefer=5, refuses=refuses, without_multiplier=True)
def shift_add(op: Product[Codes | Bits, LowBitTensor]) -> Built:
    with prim_func("product") as signature:
        product = _Product(op, signature)
        tile, rows = product.tile.rows, product.shape.rows
        with T.parallel(0, -(-rows // tile)) as t:
            # The last tile of a matrix overlaps the one before; it stores only the rows that are its own.
            begin = T.bind(T.min(t * tile, rows - tile) if rows % tile else t * tile)
            own = T.bind(t * tile - begin)
            with T.serial(0, product.shape.groups) as group:
                product.sum_up(begin, group)
                product.store(begin, own, group)
    return signature.built()


class _Product:
    """The parameters and loops of one kernel while its TIR is being built."""

    def __init__(self, op: Product[Codes | Bits, LowBitTensor], signature: Any) -> None:
        self.op, self.conv = op, op.geometry.as_conv()
        self.shape = shape = matrices_of(op.geometry)
        self.bits_left = isinstance(op.left, Bits)
        self.gathered = shape.gathered or self.bits_left
        self.levels = op.right.format.integer_levels
        self.indices = Indices(op.right.format.code_bits)
        self.run = op.group_size or shape.depth  # weights that share a scale
        self.runs = -(-shape.depth // self.run)
        self.columns = shape.columns * shape.groups
        self.tile = tile = tile_of(shape.rows, self.run, self.indices, max(1, int(op.right.format.largest)))

        stored = self.conv.input_pixels * (-(-self.conv.channels // WORD) if self.bits_left else self.conv.channels)
        self.source = signature.input(OWN_INPUTS[0], (stored,), op.left.dtype)
        self.weights = signature.constant("weight", self._packed())
        # Bits are bytes 0 and 2 with zero point 1, so that padding is a byte, too.
        self.zero_point = 1 if self.bits_left else op.left.zero_point
        self.starts = signature.constant("start", self._starts()) if self.zero_point else None
        self.scales = signature.constant("group scale", self._scales()) if op.group_size else None

        in_word, values = self.indices.in_word, self.indices.values
        table = tile.words * in_word * tile.units * values
        sums = self.shape.columns * tile.rows
        patches = tile.rows * shape.depth if self.gathered else 0
        reals = sums if op.group_size else 0
        scratch = signature.workspace((table + sums + reals) * 4 + patches)
        self.epilogue = EpilogueEmitter(op.epilogue, shape.rows, self.columns, signature)
        self.table = view(scratch, (table,), "int32")
        self.sums = view(scratch, (sums,), "int32", table * 4)
        self.reals = view(scratch, (reals,), "float32", (table + sums) * 4) if reals else None
        self.left = view(scratch, (patches,), "uint8", (table + sums + reals) * 4) if self.gathered else self.source

    # ---- constants ----

    def _packed(self) -> npt.NDArray[np.uint32]:
        """Words of indices, flat [run][column][word]."""
        codes = self.op.right.payload.codes.reshape(self.columns, self.shape.depth)
        runs = [codes[:, first : first + self.run] for first in range(0, self.shape.depth, self.run)]
        return np.concatenate([self.indices.packed(run).reshape(-1) for run in runs])

    def _starts(self) -> npt.NDArray[np.int32]:
        """-zero point x sum of the weights, [run, column]: sums are of stored bytes."""
        return np.ascontiguousarray((-self.zero_point * self.op.right.sums(self.run)).T.astype(np.int32)).reshape(-1)

    def _scales(self) -> npt.NDArray[np.float32]:
        """[run, column]."""
        return np.ascontiguousarray(self.op.right.scale.reshape(self.columns, -1).T.astype(np.float32)).reshape(-1)

    # ---- loops ----

    def sum_up(self, begin: Any, group: Any) -> None:
        """The sums of a tile from row `begin` on, for all columns of a group."""
        if self.gathered:
            self._gather(begin, group)
        base = 0 if self.gathered else begin * self.shape.depth
        if self.reals is not None:
            with T.serial(0, self.shape.columns * self.tile.rows) as i:
                T.buffer_store(self.reals, T.float32(0), [i])
        whole = self.shape.depth // self.run
        with T.serial(0, whole) as number:
            self._one_run(number, T.bind(base + number * self.run), self.run, group)
        if self.shape.depth % self.run:
            self._one_run(whole, T.bind(base + whole * self.run), self.shape.depth % self.run, group)

    def _gather(self, begin: Any, group: Any) -> None:
        conv = self.conv
        words = -(-conv.channels // WORD)

        def load(pixel: Any, element: Any) -> Any:
            if not self.bits_left:
                return self.source[pixel * conv.channels + element]
            word = self.source[pixel * words + element // WORD]
            bit = T.shift_right(word, T.Cast("uint32", element % WORD)) & T.uint32(1)
            return T.Cast("uint8", T.shift_left(bit, T.uint32(1)))

        padding = 2 if self.bits_left else self.zero_point
        gather(
            conv,
            conv.channels,
            load,
            self.left,
            begin,
            self.tile.rows,
            group,
            lambda element: T.uint8(padding),
            not self.bits_left,
        )

    def _one_run(self, number: Any, base: Any, length: int, group: Any) -> None:
        """The sums of one run of weights: of row r the bytes from left[base + r * depth] on."""
        tile, columns, indices = self.tile, self.shape.columns, self.indices
        constants = T.bind(number * self.columns + group * columns)
        with T.serial(0, columns) as column:
            start: Any = IntImm("int32", 0) if self.starts is None else T.bind(self.starts[constants + column])
            for r in range(tile.rows):
                T.buffer_store(self.sums, start, [column * tile.rows + r])
        words = indices.words(length)
        # Weights of all earlier runs come first; those of this one by column.
        first = T.bind(number * (self.columns * indices.words(self.run)) + group * (columns * words))
        chunk = tile.words * indices.weights_in_word
        if words > tile.words:
            with T.serial(0, (words - 1) // tile.words) as c:
                self._chunk(T.bind(base + c * chunk), chunk, T.bind(first + c * tile.words), words)
        done = (words - 1) // tile.words
        self._chunk(T.bind(base + done * chunk), length - done * chunk, T.bind(first + done * tile.words), words)
        if self.reals is not None and self.scales is not None:
            with T.serial(0, columns) as column:
                scale = T.bind(self.scales[constants + column])
                with T.serial(0, tile.rows) as r:
                    at = T.bind(column * tile.rows + r)
                    scaled = unfused(T.Cast("float32", self.sums[at]) * scale)
                    T.buffer_store(self.reals, self.reals[at] + scaled, [at])

    def _chunk(self, base: Any, length: int, first: Any, stride: int) -> None:
        """Add `length` products to each sum: tables of the tile's rows, then look-ups for each column.

        The words of a column begin `stride` after those of the column before.
        """
        whole, rest = divmod(length, self.indices.codes)
        with T.serial(0, whole) as i, T.serial(0, self.tile.units) as unit:
            self._table(i, unit, T.bind(base + i * self.indices.codes), self.indices.codes)
        if rest:
            with T.serial(0, self.tile.units) as unit:
                self._table(whole, unit, T.bind(base + whole * self.indices.codes), rest)
        with T.serial(0, self.shape.columns) as column:
            self._look_up(column, T.bind(first + column * stride), -(-length // self.indices.codes))

    def _table(self, index: Any, unit: Any, element: Any, codes: int) -> None:
        """Store the sums of one index for the rows of a unit."""
        tile, depth = self.tile, self.shape.depth
        row = T.bind(element + unit * (tile.lanes * depth))
        sums: list[Any] = []
        for n in range(codes):
            byte = T.Cast("int32", self.left[row + n])
            if tile.lanes == 2:
                byte = byte + T.shift_left(T.Cast("int32", self.left[row + depth + n]), IntImm("int32", 16))
            activation = T.bind(byte)
            products = [None if level is None else T.bind(times(activation, int(level))) for level in self.levels.table]
            sums = (
                [None if None in (low, high) else T.bind(low + high) for high in products for low in sums]
                if n
                else products
            )
        begin = T.bind((index * tile.units + unit) * self.indices.values)
        for value, total in enumerate(sums):
            if total is not None:
                T.buffer_store(self.table, total, [begin + value])

    def _look_up(self, column: Any, first: Any, count: int) -> None:
        """Add the sums that `count` indices of a column name, which are in the words from `first` on."""
        tile, indices = self.tile, self.indices
        totals = [T.alloc_buffer((1,), "int32") for _ in range(tile.units)]
        for total in totals:
            T.buffer_store(total, T.int32(0), [0])

        def add(word: Any, begin: Any, several: int) -> None:
            for i in range(several):
                shifted = word if i == 0 else T.shift_right(word, T.uint32(i * indices.bits))
                index = T.bind(begin + T.Cast("int32", shifted & T.uint32(indices.values - 1)))
                for unit, total in enumerate(totals):
                    place = index + (i * tile.units + unit) * indices.values
                    T.buffer_store(total, total[0] + self.table[place], [0])

        whole, rest = divmod(count, indices.in_word)
        tables = indices.in_word * tile.units * indices.values  # of a word
        with T.serial(0, whole) as w:
            add(T.bind(self.weights[first + w]), T.bind(w * tables), indices.in_word)
        if rest:
            add(T.bind(self.weights[first + whole]), whole * tables, rest)
        for unit, total in enumerate(totals):
            at = T.bind(column * tile.rows + unit * tile.lanes)
            for lane, value in enumerate(_lanes(T.bind(total[0]), tile.lanes)):
                T.buffer_store(self.sums, self.sums[at + lane] + value, [at + lane])

    def store(self, begin: Any, own: Any, group: Any) -> None:
        """The epilogue of a tile's rows from `own` on."""
        sums = self.sums if self.reals is None else self.reals
        with T.serial(0, self.tile.rows - own) as r:
            row = T.bind(own + r)
            with T.serial(0, self.shape.columns) as column:
                value = sums[column * self.tile.rows + row]
                self.epilogue.emit(value, begin + row, group * self.shape.columns + column)


def _lanes(total: Any, lanes: int) -> list[Any]:
    """The sums of a word: low + high x 2^16."""
    if lanes == 1:
        return [total]
    sixteen = IntImm("int32", 16)
    low = T.Cast("int32", T.shift_left(T.Cast("uint32", total), T.uint32(16)))
    low = T.bind(T.shift_right(low, sixteen))
    return [low, T.shift_right(total - low, sixteen)]
