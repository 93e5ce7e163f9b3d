"""The activations of one tile, copied into the workspace: padded at the edges, channels rounded up, widened.

Widened to 2, bytes become int16; widened to 8, each bit becomes a byte 0 or 1 (AMX is 6% slower on -1 and 1, in a 3x3
convolution of 256 channels, probably at a lower clock). `BinarizedInput` also binarizes float32 activations here: one
pass over them instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm, Ramp, Shuffle

from subbyte.tvm_kernels.kernels.tir.epilogue import packed
from subbyte.tvm_kernels.kernels.tir.vectors import constants, reinterpret, splat, vector_type
from subbyte.tvm_kernels.operators import WORD, Conv2d

RUN = 64  # bytes copied at once
BYTE_BITS = 8
WORD_BYTES = WORD // BYTE_BITS


@dataclass(frozen=True)
class Strides:
    """The strides of activations in bytes: of a channel group, of a pixel, of a row."""

    group: int
    pixel: int
    row: int


@dataclass(frozen=True)
class PaddedInput:
    """The copy of rows of the input of `window`.

    stored: bytes of one channel group of one pixel in the input; rounded: their number in the copy, the rest are 0;
    widened: bytes in the copy for each, 1, 2 or 8; fill: bytes of one padded pixel in the input's own layout.
    """

    window: Conv2d
    stored: int
    rounded: int
    widened: int
    fill: bytes

    @property
    def needed(self) -> bool:
        """Whether the input cannot be read in place."""
        return any(self.window.padding) or self.rounded != self.stored or self.widened > 1

    @property
    def run(self) -> int:
        """Bytes copied at once."""
        return RUN if self.widened < BYTE_BITS else RUN // BYTE_BITS

    @property
    def source(self) -> Strides:
        pixel = self.stored * self.window.groups
        return Strides(self.stored, pixel, pixel * self.window.width)

    @property
    def copy(self) -> Strides:
        group = self.rounded * self.widened
        pixel = group * self.window.groups
        return Strides(group, pixel, pixel * self.window.padded_width)

    def copied_rows(self, out_rows: int) -> int:
        """Input rows that `out_rows` output rows read."""
        window = self.window
        return (out_rows - 1) * window.stride[0] + (window.kernel[0] - 1) * window.dilation[0] + 1

    def emit(self, source: Any, image: Any, first_row: Any, rows: Any, into: Any) -> None:
        """Copy `rows` rows of image number `image`, from row `first_row` (may be negative), to the start of `into`."""
        window = self.window
        with T.serial(0, rows) as row:
            at = T.bind(row * self.copy.row)
            y = T.bind(first_row + row)
            inside = T.And(y >= 0, y < window.height)
            with T.If(inside):
                with T.Then():
                    self._fill(into, at, window.padding[1])
                    start = T.bind((image * window.height + y) * self.source.row)
                    self._copy_row(source, start, into, T.bind(at + window.padding[1] * self.copy.pixel))
                    right = at + (window.padding[1] + window.width) * self.copy.pixel
                    self._fill(into, T.bind(right), window.padding[3])
                with T.Else():
                    self._fill(into, at, window.padded_width)

    def _copy_row(self, source: Any, start: Any, into: Any, at: Any) -> None:
        window = self.window
        if self.rounded == self.stored:
            self._run(source, start, into, at, self.source.row)
            return
        with T.serial(0, window.width * window.groups) as part:
            here = T.bind(at + part * self.copy.group)
            self._run(source, T.bind(start + part * self.stored), into, here, self.stored)
            self._clear_rest(into, here)

    def _clear_rest(self, into: Any, group: Any) -> None:
        """Zeros after the stored bytes of a channel group."""
        for missing in range(self.stored * self.widened, self.rounded * self.widened):
            T.buffer_store(into, IntImm("int8", 0), [group + missing])

    def _run(self, source: Any, start: Any, into: Any, at: Any, nbytes: int) -> None:
        """Copy consecutive bytes: vectors, then smaller powers of two."""
        run = self.run
        whole = nbytes // run
        if whole:
            with T.serial(0, whole) as index:
                self._copy(source, start + index * run, into, at + index * (run * self.widened), run)
        done, lanes = whole * run, run
        while done < nbytes:
            while lanes > nbytes - done:
                lanes //= 2
            self._copy(source, start + done, into, at + done * self.widened, lanes)
            done += lanes

    def _copy(self, source: Any, start: Any, into: Any, at: Any, lanes: int) -> None:
        value = source[start] if lanes == 1 else source[Ramp(start, 1, lanes)]
        self._store(value, into, at, lanes)

    def _store(self, value: Any, into: Any, at: Any, lanes: int) -> None:
        """Store uint8 lanes as int8 or, widened, as the bytes of int16 or as eight bytes 0 or 1 each."""
        total = lanes * self.widened
        if self.widened == 2:
            value = T.Cast(vector_type("int16", lanes), value)
        elif self.widened == BYTE_BITS:
            value = _unpacked_bits(value, lanes)
        value = reinterpret(vector_type("int8", total), value)
        T.buffer_store(into, value, [at if total == 1 else Ramp(at, 1, total)])

    def _fill(self, into: Any, at: Any, pixels: int) -> None:
        """Fill `pixels` pixels of padding."""
        if pixels == 0:
            return
        with T.serial(0, pixels * self.window.groups) as part:
            here = T.bind(at + part * self.copy.group)
            # All channel groups have the same fill: bits are split into groups only at whole words.
            done, lanes = 0, self.run
            while done < self.stored:
                while lanes > self.stored - done:
                    lanes //= 2
                vector = constants("uint8", list(self.fill[done : done + lanes]))
                self._store(vector, into, here + done * self.widened, lanes)
                done += lanes
            self._clear_rest(into, here)


@dataclass(frozen=True)
class BinarizeBuffers:
    """The buffers of a binarization: float32 values [elements], threshold [channels] or [1], uint32 bits [words]."""

    values: Any
    threshold: Any
    bits: Any


class BinarizedInput(PaddedInput):
    """The copy of float32 activations, binarized to bytes 0 and 1; they are stored as bits as well.

    Its `source` is a `BinarizeBuffers`. Bytes of the input's own layout are those of the bits, in whole words.
    """

    @property
    def needed(self) -> bool:
        return True

    def _copy_row(self, source: Any, start: Any, into: Any, at: Any) -> None:
        with T.serial(0, self.window.width * self.window.groups) as part:
            first = T.bind(start + part * self.stored)
            here = T.bind(at + part * self.copy.group)
            channel = part % self.window.groups * (self.stored * BYTE_BITS)
            runs, rest = divmod(self.stored // WORD_BYTES, RUN // WORD)
            with T.serial(0, runs) as run:
                done = run * RUN
                self._binarize(source, T.bind(first + run * (RUN // BYTE_BITS)), channel + done, into, here + done, RUN)
            if rest:
                done = runs * RUN
                self._binarize(source, T.bind(first + done // BYTE_BITS), channel + done, into, here + done, WORD)
            self._clear_rest(into, here)

    def _binarize(self, source: BinarizeBuffers, first: Any, channel: Any, into: Any, at: Any, lanes: int) -> None:
        """Binarize `lanes` values from `channel` on, whose bits start at byte `first`."""
        each = int(source.threshold.shape[0]) > 1
        threshold = source.threshold[Ramp(channel, 1, lanes)] if each else splat(source.threshold[0], lanes)
        values, threshold = T.bind(source.values[Ramp(first * BYTE_BITS, 1, lanes)]), T.bind(threshold)
        ones, zeros = (splat(IntImm("int8", number), lanes) for number in (1, 0))
        T.buffer_store(into, T.Select(values >= threshold, ones, zeros), [Ramp(at, 1, lanes)])
        for word in range(lanes // WORD):
            indices = list(range(word * WORD, (word + 1) * WORD))
            condition = Shuffle([values], indices) >= Shuffle([threshold], indices)
            T.buffer_store(source.bits, packed(condition, WORD, x86=True), [first // WORD_BYTES + word])


def _unpacked_bits(value: Any, lanes: int) -> Any:
    """Bytes 0 and 1 for the bits of `lanes` bytes, least significant first."""
    total = BYTE_BITS * lanes
    order = list(range(total))
    zeros, ones = (splat(IntImm("uint8", number), total) for number in (0, 1))
    # All bytes are repeated first: then each is shuffled within its 128 bits only, which is one instruction.
    whole = splat(reinterpret(f"uint{8 * lanes}", value), BYTE_BITS)
    repeated = Shuffle(
        [reinterpret(f"uint8x{total}", whole)], [index // 16 * 16 + index // BYTE_BITS for index in order]
    )
    masks = constants("uint8", [1 << (index % BYTE_BITS) for index in order])
    return T.Select(T.bitwise_and(repeated, masks) != zeros, ones, zeros)
