"""Float weights that are integer levels times a scale: low-bit weights that were dequantized before export.

    float32(level x scale) == w, bit for bit, for every element of w; levels of 8 bits and less, one scale for each
    output channel

Behind codes that makes an integer product, whatever the weights were made from. Behind floats there is no kernel of
such weights, and the layer is named; there `Levels.trained` keeps filters made by hand from being called low-bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from subbyte import formats
from subbyte.formats import Format
from subbyte.tvm_kernels.graph import Array, GraphWeight
from subbyte.tvm_kernels.rewrites.foreign import weight_of

FEW_LEVELS = "float weights of few levels"  # the rule behind codes, whose reason is shown
MOST = 127  # the largest level
FIRST = 16  # elements of a row that are tried before the whole row is
ELEMENTS, BY_LEVEL = 64, 4  # the least of `Levels.trained`
# Narrowest first, and at the same width those with more kernel rows.
FORMATS = ("binary", "ternary", "int2", "int3", "pow2_3", "int4", "pow2_4", "int5", "int6", "int7", "int8")


@dataclass(frozen=True)
class Levels:
    """w[channel] = float32(rows[channel] x scale[channel])."""

    rows: npt.NDArray[np.int32]  # [output channels, elements of each]
    scale: npt.NDArray[np.float32]  # one for all, or [output channels]

    @property
    def format(self) -> Format:
        """The narrowest one that holds all levels."""
        found = np.unique(self.rows)
        return next(fmt for name in FORMATS if np.isin(found, (fmt := formats.get(name)).levels.values).all())

    @property
    def trained(self) -> bool:
        """Whether they look like weights of a network: a filter made by hand is exact in few levels, too.

        They have both signs, and in output channels that differ `ELEMENTS` elements, and `BY_LEVEL` for each level.
        Averages, sums, selections of channels, one filter (blur, Sobel) for all channels and small matrices do not.
        """
        found, rows = np.unique(self.rows), np.unique(self.rows.astype(np.int8), axis=0)
        return bool(found[0] < 0 < found[-1]) and len(rows) > 1 and rows.size >= max(ELEMENTS, BY_LEVEL * found.size)

    def __str__(self) -> str:
        found = np.unique(self.rows)
        listed = f"{found.size} levels from {found[0]} to {found[-1]}"
        listed = listed if found.size > 5 else ", ".join(map(str, found))
        return f"{self.format.name} ({listed}, times {'one scale' if self.scale.size == 1 else 'a scale by channel'})"


def low_bit(w: Array, axis: int) -> Levels | None:
    """The levels of float32 weights whose output channels are `axis`; None where an element is no level exactly."""
    if w.dtype != np.float32 or w.ndim < 2 or not w.size:
        return None
    first = np.take(w, 0, axis).reshape(-1)
    if first.size < 2 or (first.any() and _first_fit(first, np.abs(first).max()) is None):
        return None  # most float weights end here
    rows = np.ascontiguousarray(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1))
    if not rows.any():
        return None
    by_channel = _scaled(rows)
    if by_channel is None:
        return None
    by_tensor = _scaled(rows.reshape(1, -1))
    channels = Levels(*by_channel)
    tensor = channels if by_tensor is None else Levels(by_tensor[0].reshape(rows.shape), by_tensor[1])
    return tensor if tensor.format.code_bits <= channels.format.code_bits else channels


def as_weight(levels: Levels, shape: tuple[int, ...], axis: int) -> GraphWeight:
    """The GraphWeight of these levels as an operand of this shape."""
    moved = (shape[axis], *(n for i, n in enumerate(shape) if i != axis))
    values = np.moveaxis(levels.rows.reshape(moved), 0, axis)
    return weight_of(values, levels.scale, np.zeros(1, np.int32), axis, levels.format.name)


def _scaled(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None:
    """Levels and scale of each row, the largest scale that there is; None unless every row has one."""
    largest = np.abs(rows).max(axis=1)
    scale = np.where(largest > 0, largest, np.float32(1))
    for row in np.flatnonzero(largest > 0):
        fit = _first_fit(rows[row], largest[row])
        if fit is None:
            return None
        scale[row] = fit
    return np.rint(rows / scale[:, None]).astype(np.int32), scale


def _first_fit(row: npt.NDArray[np.float32], largest: np.float32) -> np.float32 | None:
    """The largest scale whose whole multiples in float32 are the elements of this row."""
    with np.errstate(all="ignore"):
        near = largest / np.arange(1, MOST + 1, dtype=np.float32)
        # Every float32 of which a whole multiple rounds to the largest magnitude, the largest first.
        scales = np.stack([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))], 1)
        scales = scales.reshape(-1)
        scales = scales[_fits(row[:FIRST], scales)]
        for scale in scales:
            if _fits(row, scale[None])[0]:
                found: np.float32 = scale
                return found
    return None


def _fits(row: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether each scale makes all elements of a row."""
    levels = np.rint(row / scales[:, None])
    same = (levels * scales[:, None] == row) & (np.abs(levels) <= MOST)
    return np.asarray(same.all(axis=1), np.bool_)
