"""The tiling of a product, matrix product or convolution: tiles for threads, register tiles inside them.

A matrix product is a convolution with a 1x1 window over an image of width 1. Everything here is plain arithmetic on
Python integers; product.py emits the loops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from subbyte.tvm_kernels.kernels.x86.instructions import Instruction
from subbyte.tvm_kernels.operators import Conv2d, MatMul


def window_of(geometry: MatMul | Conv2d) -> Conv2d:
    """The product as a convolution; a dense 1x1 convolution becomes a matrix product over all positions."""
    conv = geometry.as_conv()
    return replace(conv, batch=1, height=conv.input_pixels, width=1) if conv.is_pointwise else conv


@dataclass(frozen=True)
class Positions:
    """Output positions that are computed together: `height` rows of the image x `width` pixels in each."""

    height: int
    width: int


def positions_of(window: Conv2d, most: int, vectors: int, operations: int) -> Positions:
    """The register tile of at most `most` positions x `vectors` vectors that takes the least time over the output."""
    width = window.out_width
    if width > most // 2:
        return Positions(1, _cut(width, most, vectors, operations))
    rows = _cut(window.out_height, most // width, vectors * width, operations)
    return Positions(rows, width)


def _cut(length: int, most: int, vectors: int, operations: int) -> int:
    """The part, at most `most` long, into which `length` (with a remainder) is split at the least cost."""

    def cost(piece: int) -> float:
        whole, rest = divmod(length, piece)
        return whole * _step_cycles(piece, vectors, operations) + (
            _step_cycles(rest, vectors, operations) if rest else 0.0
        )

    return min(range(1, min(most, length) + 1), key=lambda piece: (cost(piece), -piece))


def _step_cycles(positions: int, vectors: int, operations: int) -> float:
    """Cycles of a step of the inner loop: two vector ports, two loads, latency of the sums."""
    return max(positions * vectors * operations / 2, (positions + vectors) / 2, LATENCY) + 0.5


def register_tile(instruction: Instruction, window: Conv2d, depth_bytes: int) -> tuple[int, int]:
    """The most output positions, and the vectors of channels, of a register tile; `depth_bytes`: weights a channel."""
    channels = window.out_channels // window.groups
    available = -(-channels // instruction.lanes)
    positions, vectors = instruction.near_tile
    if window.pixels <= 2:
        return window.pixels, min(2 * vectors, available)
    if window.out_width > 1 or min(vectors, available) * instruction.lanes * depth_bytes > NEAR_BYTES:
        positions, vectors = instruction.far_tile
    if available >= vectors:
        return positions, vectors
    # Few channels: keep the number of accumulators by taking more positions.
    total = max(positions * vectors, instruction.far_tile[0] * instruction.far_tile[1])
    return min(total // available, instruction.far_tile[0]), available


@dataclass(frozen=True)
class Tiles:
    """Work distributed over threads: batch x row_blocks x column_blocks tiles.

    A row block is `row_groups` groups of `Positions.height` output rows; a column block is `panels` panels of channels.
    """

    row_blocks: int
    row_groups: int
    column_blocks: int
    panels: int


NEAR_BYTES = 40_000  # of weights that stay in a first-level cache of 48 KiB
LATENCY = 5  # cycles from one sum to the next
TILE_MACS = 1_000_000  # about 3 us on one AVX-512 VNNI core: a thread is not woken for less
FEW_THREADS = 2  # assumed to share columns of tiles
ENOUGH_TILES = 8  # for an even distribution over the threads of a small machine


def tiles_of(
    window: Conv2d, groups: int, panels: int, copy_bytes: int, decode_bytes: int, worth: int = TILE_MACS
) -> Tiles:
    """Cut `groups` row groups x `panels` panels into tiles at the least cost of repeated work.

    Each thread copies the padded input again (`copy_bytes`), each row block decodes the weights again
    (`decode_bytes`); both take about one cycle for 32 bytes. A tile of fewer than `worth` multiply-adds is not worth
    another thread. Of equal cuts the one with fewer tiles is taken. An image has one tile, or an even number of them.
    """
    wanted = -(-max(1, min(ENOUGH_TILES, window.macs // worth)) // window.batch)
    wanted += wanted > 1 and wanted % 2  # so that two threads finish together
    cuts = [(rows, columns) for rows in range(1, min(groups, wanted) + 1) for columns in range(1, panels + 1)]
    most = max(rows * columns for rows, columns in cuts)
    enough = [(rows, columns) for rows, columns in cuts if rows * columns >= min(wanted, most)]

    def cost(cut: tuple[int, int]) -> tuple[int, int]:
        rows, columns = cut
        copies = min(columns, FEW_THREADS)
        halo = (rows - 1) * (window.kernel[0] - 1) * window.dilation[0] * copies * copy_bytes // window.height
        return (copies * copy_bytes + halo + rows * decode_bytes, rows * columns)

    best = min(enough, key=cost)
    row_groups = -(-groups // best[0])
    per_block = -(-panels // best[1])
    return Tiles(-(-groups // row_groups), row_groups, -(-panels // per_block), per_block)
