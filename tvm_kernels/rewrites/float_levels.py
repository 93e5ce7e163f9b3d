"""Float weights that are integer levels times a scale: low-bit weights that were dequantized before export.

    float32(level x scale) == w, bit for bit, for every element of w; levels of 8 bits and less, one scale for each
    output channel

With an activation in codes such a layer is an integer product. With a float activation no kernel uses the levels, and
the report names the layer; there `trained` excludes filters that were designed by hand.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from subbyte.formats import Format, LowBitTensor, PerChannel, PerTensor, all_formats
from subbyte.tvm_kernels.graph import Array

FEW_LEVELS = "float weights of few levels"  # the rule for activations in codes; the report gives its reason
MOST = 127  # the largest level
FIRST = 16  # elements of a row that are tried before the whole row is
ELEMENTS, BY_LEVEL = 64, 4  # the least of `trained`


def low_bit(w: Array, axis: int) -> LowBitTensor | None:
    """Float32 weights as levels, their output channels `axis` first; None where an element is not exactly a level."""
    if w.dtype != np.float32 or w.ndim < 2 or not w.size:
        return None
    first = np.take(w, 0, axis).reshape(-1)
    if first.size < 2 or (first.any() and _first_fit(first, np.abs(first).max()) is None):
        return None  # most float weights end here
    permuted = np.ascontiguousarray(np.moveaxis(w, axis, 0))
    rows = permuted.reshape(len(permuted), -1)
    by_channel = _scaled(rows) if rows.any() else None
    if by_channel is None:
        return None
    channels = _tensor(*by_channel, permuted.shape, PerChannel())
    by_tensor = _scaled(rows.reshape(1, -1))
    tensor = channels if by_tensor is None else _tensor(*by_tensor, permuted.shape, PerTensor())
    return tensor if tensor.format.code_bits <= channels.format.code_bits else channels


def trained(tensor: LowBitTensor) -> bool:
    """Whether levels look like trained weights: filters that were designed by hand have few levels, too.

    Trained weights have levels of both signs, output channels that differ, at least `ELEMENTS` elements, and `BY_LEVEL`
    for each level. Averages, sums, selections of channels, one filter (blur, Sobel) for all channels and small matrices
    do not.
    """
    rows = tensor.compact_integers.reshape(tensor.matrix_shape)
    found = np.unique(rows)
    different = len(np.unique(rows, axis=0)) > 1
    return bool(found[0] < 0 < found[-1]) and different and rows.size >= max(ELEMENTS, BY_LEVEL * found.size)


def described(tensor: LowBitTensor) -> str:
    """In reports: "ternary (-1, 0, 1, times one scale)"."""
    found = np.unique(tensor.compact_integers)
    listed = f"{found.size} levels from {found[0]} to {found[-1]}"
    listed = listed if found.size > 5 else ", ".join(map(str, found))
    return f"{tensor.format.name} ({listed}, times {'one scale' if tensor.scale.size == 1 else 'a scale by channel'})"


def _tensor(levels: Array, scale: Array, shape: tuple[int, ...], granularity: PerChannel | PerTensor) -> LowBitTensor:
    scales = scale.reshape(granularity.scale_shape(shape))
    return LowBitTensor.from_levels(_narrowest(levels), levels.reshape(shape), scales, granularity)


def _narrowest(levels: Array) -> Format:
    """The signed format of fewest bits that holds all levels; of several the one that is decoded in fewest steps."""
    found = np.unique(levels)
    signed = [fmt for fmt in all_formats() if fmt.levels.integer and fmt.levels.values[0] < 0]
    return min((fmt for fmt in signed if np.isin(found, fmt.levels.values).all()), key=_effort)


def _effort(fmt: Format) -> tuple[int, bool, bool]:
    levels = fmt.integer_levels
    return fmt.code_bits, levels.line is None, not levels.twos_complement


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
