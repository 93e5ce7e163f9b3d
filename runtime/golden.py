"""The golden run of a bundle: its inputs and outputs, and how far the outputs of a run are from the golden ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import BundleError
from subbyte.runtime.archive import REBUILD
from subbyte.runtime.bundle import Bundle
from subbyte.runtime.manifest import TensorInfo
from subbyte.runtime.npy import read_npy

Array = npt.NDArray[Any]

# What float parts of a network may differ by (exp, erf, order of float sums); integers must be equal. The absolute part
# grows with the largest value of an output: where a float sum cancels, its error is that of its terms.
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5
MOST_MOVED = 20  # of the integers of an output at most one in so many may have moved over a rounding tie, or one


@dataclass(frozen=True)
class GoldenOutput:
    """One output against its golden value."""

    name: str
    elements: int
    differing: int  # elements that are not the same bits
    max_abs_error: float | None  # None where it cannot be measured: NaN
    moved: int  # elements beyond the tolerance, but within what a rounding tie moves them by
    ok: bool  # all are equal, floats within the tolerance, or moved


@dataclass(frozen=True)
class GoldenReport:
    """All outputs of the golden run: `exact` when every bit is the same, `ok` when within tolerance."""

    ok: bool
    exact: bool
    outputs: tuple[GoldenOutput, ...]

    @property
    def differing(self) -> int:
        """Elements of all outputs that are not the same bits."""
        return sum(row.differing for row in self.outputs)

    @property
    def moved(self) -> int:
        """Elements of all outputs that a rounding tie explains."""
        return sum(row.moved for row in self.outputs)

    @property
    def max_abs_error(self) -> float | None:
        """The largest of all outputs; None where one cannot be measured."""
        errors = [row.max_abs_error for row in self.outputs if row.max_abs_error is not None]
        return max(errors) if len(errors) == len(self.outputs) else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def golden_report(bundle: Bundle, results: Sequence[Sequence[Array]], states: Sequence[Array] = ()) -> GoldenReport:
    """What runs on `golden_runs` gave, in the model's order, and the state after them, against the golden ones.

    Raises BundleError.
    """
    manifest = bundle.manifest
    made = [np.stack(arrays) for arrays in zip(*results, strict=True)] if manifest.states else list(results[0])
    tensors, wanted = (*manifest.outputs, *manifest.states), [*golden_outputs(bundle), *golden_states(bundle)]
    compared = zip(tensors, [*made, *states], wanted, manifest.golden_ties, strict=True)
    rows = tuple(_compare(*row) for row in compared)
    return GoldenReport(all(row.ok for row in rows), all(row.differing == 0 for row in rows), rows)


def golden_inputs(bundle: Bundle) -> list[Array]:
    """The golden inputs, in the model's order; of a model with state those of the first run. Raises BundleError."""
    return golden_runs(bundle)[0]


def golden_runs(bundle: Bundle) -> list[list[Array]]:
    """The golden inputs of each run: one, but of a model with state several in a row. Raises BundleError."""
    manifest = bundle.manifest
    arrays = [_read(bundle, f"golden/input_{i}.npy", _runs_of(bundle, info)) for i, info in enumerate(manifest.inputs)]
    return [[array[run] for array in arrays] for run in range(manifest.golden_runs)] if manifest.states else [arrays]


def golden_outputs(bundle: Bundle) -> list[Array]:
    """What the reference gives for `golden_runs`, with an axis for runs where there is state; raises BundleError."""
    outputs = bundle.manifest.outputs
    return [_read(bundle, f"golden/output_{i}.npy", _runs_of(bundle, info)) for i, info in enumerate(outputs)]


def golden_states(bundle: Bundle) -> list[Array]:
    """The state that the reference has after `golden_runs`; raises BundleError."""
    return [_read(bundle, f"golden/state_{i}.npy", info) for i, info in enumerate(bundle.manifest.states)]


def _runs_of(bundle: Bundle, info: TensorInfo) -> TensorInfo:
    manifest = bundle.manifest
    return TensorInfo(info.name, info.dtype, (manifest.golden_runs, *info.shape)) if manifest.states else info


def has_golden(bundle: Bundle) -> bool:
    """Whether the bundle can be checked against golden outputs."""
    return "golden/output_0.npy" in bundle.members


def _compare(info: TensorInfo, got: Array, want: Array, tie: float) -> GoldenOutput:
    """runtime/c/compare.h compares in the same way."""
    bits = f"V{got.dtype.itemsize}"  # bits, so that NaN equals NaN and +0 is not -0
    equal = got.reshape(-1).view(bits) == want.reshape(-1).view(bits)
    error = _difference(got, want).reshape(-1)
    largest = float(error.max(initial=0))
    close = equal | within_tolerance(got, want).reshape(-1)
    most: float | np.uint64 = tie
    if error.dtype == np.uint64:  # compared with a float it would be rounded to one
        most = np.uint64(int(min(tie, 2**64 - 1)))
    moved = ~close & (error <= most) & (tie > 0)
    count = int(np.count_nonzero(moved))
    few = got.dtype.kind == "f" or count <= max(1, got.size // MOST_MOVED)
    ok = bool(np.all(close | moved)) and few
    differing = int(np.count_nonzero(~equal))
    return GoldenOutput(info.name, got.size, differing, largest if np.isfinite(largest) else None, count, ok)


def within_tolerance(got: Array, want: Array) -> Array:
    """Where integers are equal, and floats within RELATIVE * |want| + ABSOLUTE * max(1, the largest finite |want|).

    NaN is within the tolerance of NaN, an infinity of itself. `got` and `want`: one shape and dtype; returns bool.
    """
    if want.dtype.kind != "f":
        return np.asarray(got == want)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        size = np.abs(want.astype(np.float64))
    scale = np.max(size, initial=1.0, where=np.isfinite(size))
    error = _difference(got, want)
    with np.errstate(over="ignore"):
        near = np.isfinite(error) & (error <= RELATIVE_TOLERANCE * size + ABSOLUTE_TOLERANCE * scale)
    return np.asarray(near | (np.isnan(got) & np.isnan(want)))


def _difference(got: Array, want: Array) -> Array:
    """|got - want|: float64 of floats, NaN where either is; uint64, exact, of integers."""
    with np.errstate(invalid="ignore", over="ignore"):  # infinity less itself would be NaN; integers wrap at 2^64
        if want.dtype.kind != "f":
            return np.asarray(np.maximum(got, want).astype(np.uint64) - np.minimum(got, want).astype(np.uint64))
        return np.where(got == want, 0.0, np.abs(got.astype(np.float64) - want.astype(np.float64)))


def _read(bundle: Bundle, member: str, info: TensorInfo) -> Array:
    content = io.BytesIO(bundle.read(member))
    with bundle.naming():
        try:
            return read_npy(content, info.dtype, info.shape)
        except ValueError as error:
            raise BundleError(f"member '{member}' {error}, by the manifest. {REBUILD}") from error
