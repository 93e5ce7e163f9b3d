"""The tiling of a product for AMX's tile registers, as plain integers; amx.py emits the loops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from subbyte.tvm_kernels.kernels.x86.instructions import STEP_BYTES, VNNI_512
from subbyte.tvm_kernels.kernels.x86.operands import Operands
from subbyte.tvm_kernels.kernels.x86.tiling import NEAR_BYTES
from subbyte.tvm_kernels.operators import WORD, Conv2d

ROWS = 16  # of a tile
ROW_BYTES = 64
TILES = 8
SUMS = 4  # tiles of sums
WORTH_MACS = 400_000  # resnet8's layers of 150,000 (8x8 images) are slower with tiles, of 1,800,000 (28x28) not
REUSE = 4  # register tiles with the same weights, from which on it pays to keep the weights in cache
PART_BYTES = 26_000  # of weights: with their activations they stay in a first-level cache of 48 KiB
FLATTER = 0.8  # of the tiles: `flat` must need less than this part of them to be chosen


@dataclass(frozen=True)
class Shape:
    """Tile registers for one product, chosen for the fewest tiles.

    rounded: bytes of activations of a channel group of one pixel, after unpacking; chunk: bytes of a row of a tile;
    chunks: of a run of neighbouring window positions; rows: positions in a tile; flat: positions are counted through
    the padded rows of the copy, and those in the padding are not stored; vectors: of channels; full: the part of the
    multiplications in the tiles that is needed, 1 where positions, chunks and channels all fill them; parts: of the
    reduction, `splits` of them for each row of the window.
    """

    rounded: int
    chunk: int
    chunks: int
    rows: int
    flat: bool
    vectors: int
    full: float
    parts: int
    splits: int

    @property
    def blocks(self) -> int:
        """Tiles of activations that are multiplied with the same weights."""
        return SUMS // self.vectors

    def configuration(self) -> npt.NDArray[np.uint8]:
        """The operand of LDTILECFG: palette 1, then bytes of a row (uint16) and rows of each tile."""
        table = np.zeros(64, np.uint8)
        table[0] = 1
        row_bytes, rows = table[16:32].view(np.uint16), table[48:56]
        row_bytes[:], rows[:] = ROW_BYTES, self.rows
        rows[SUMS : SUMS + self.vectors] = self.chunk // STEP_BYTES
        row_bytes[SUMS + self.vectors :] = self.chunk
        return table


def run_count(window: Conv2d) -> int:
    """Contiguous runs of bytes in a row of the window: one without dilation and groups, else one for each position."""
    return 1 if window.groups == 1 and window.dilation[1] == 1 else window.kernel[1]


def _chunks(run: int) -> int:
    """The smallest number of equal chunks that cut `run` bytes into tile rows."""
    count = -(-run // ROW_BYTES)
    while run % count or run // count % STEP_BYTES:
        count += 1
    return count


def shape_of(operands: Operands) -> Shape:
    """Rounding channels up costs a copy of the input, but often saves tiles; so does counting through the padding."""
    window = operands.window
    stored = window.channels // window.groups * operands.unpacked
    channels = window.out_channels // window.groups
    step = STEP_BYTES if operands.unpacked == 1 else WORD
    first = -(-stored // step) * step
    merged = window.kernel[1] // run_count(window)  # window positions in a run
    rounded = min(range(first, first + ROW_BYTES, step), key=lambda rounded: (_chunks(merged * rounded), rounded))
    chunks = _chunks(merged * rounded)

    length, lengths = (window.out_width, window.out_height) if window.out_width > 1 else (window.out_height, 1)
    rows = -(-length // -(-length // ROWS))
    tiles = lengths * -(-length // rows)
    flat_tiles = -(-((window.out_height - 1) * window.padded_width + window.out_width) // ROWS)
    copied = any(window.padding) or rounded != stored or operands.unpacked > 1
    flat = copied and window.stride == (1, 1) and lengths > 1 and flat_tiles < FLATTER * tiles
    if flat:
        rows, tiles = ROWS, flat_tiles

    vectors = -(-channels // VNNI_512.lanes)
    used = window.out_height * window.out_width * channels * merged * stored
    full = used / (tiles * ROWS * vectors * VNNI_512.lanes * chunks * ROW_BYTES)
    vectors = min(2, vectors)
    chunk = merged * rounded // chunks
    splits = _splits(window, chunks, chunk * vectors * VNNI_512.lanes) if tiles >= REUSE * SUMS // vectors else 0
    parts = max(1, window.kernel[0] * splits)
    return Shape(rounded, chunk, chunks, rows, flat, vectors, full, parts, max(1, splits))


def _splits(window: Conv2d, chunks: int, chunk_bytes: int) -> int:
    """Parts for each row of the window, with weights of `chunks` x `chunk_bytes` for a run; 0: the whole at once."""
    runs = run_count(window)
    row_bytes = runs * chunks * chunk_bytes
    if window.kernel[0] * row_bytes <= NEAR_BYTES or chunk_bytes % (8 * ROW_BYTES):  # parts are whole packed vectors
        return 0
    if runs > 1:
        return 1
    return next((n for n in range(1, chunks) if chunks % n == 0 and row_bytes <= n * PART_BYTES), chunks)


def not_worth(operands: Operands, least: float) -> str | None:
    """Why tiles are not worth it: the layer is small, or less than `least` of them is full. For a row's `refuses`."""
    if operands.window.macs * operands.unpacked < WORTH_MACS:
        return "the layer is too small to repay the setup of tile registers"
    full = shape_of(operands).full
    if full >= least:
        return None
    return f"its tiles would be {100 * full:.0f}% full, and below {100 * least:.0f}% they are slower"
