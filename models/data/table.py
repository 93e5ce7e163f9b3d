"""Tables in CSV or Parquet: some columns go in, the target columns come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from subbyte.errors import DataError, UsageError
from subbyte.files import limits
from subbyte.models.data.columns import TABLE_SUFFIXES, Table, read_table
from subbyte.models.data.data_set import Data
from subbyte.models.data.in_memory import Samples
from subbyte.models.data.normalization import Normalization
from subbyte.models.data.register import register_data
from subbyte.models.data.split import TEST_SHARE, held_out
from subbyte.models.options import Share

Array = npt.NDArray[Any]
Names = str | Sequence[str]
Use = Literal["classification", "regression", "multi-label"]


@dataclass(frozen=True)
class Input:
    """How a column becomes inputs: as a number, as the place of its text in `values`, or one input for each value."""

    column: str
    kind: Literal["number", "codes", "one-hot"]
    values: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many inputs it becomes."""
        return len(self.values) if self.kind == "one-hot" else 1

    def description(self) -> dict[str, Any]:
        """It as JSON."""
        return {"column": self.column, "kind": self.kind, **({"values": list(self.values)} if self.values else {})}

    def encode(self, table: Table) -> npt.NDArray[np.float32]:
        """Inputs float32 [rows, n]; raises DataError for a text that is not one of `values`."""
        if self.kind == "number":
            return np.asarray(table.columns[self.column], np.float32)[:, None]
        codes = _codes(table, self.column, self.values)
        if self.kind == "codes":
            return codes.astype(np.float32)[:, None]
        return np.asarray(codes[:, None] == np.arange(len(self.values)), np.float32)


@register_data(
    "table",
    summary="your own table: a .csv or .parquet file, or a folder with train and test; target=COLUMN",
    shape=("columns",),
)
def table(
    path: Path,
    target: Names = (),
    task: Use | None = None,
    drop: Names = (),
    texts: Names = (),
    encoding: Literal["one-hot", "codes"] = "one-hot",
    test_share: Share = TEST_SHARE,
) -> Data:
    """Rows of a table: the columns `target` are predicted, all others but `drop` are the inputs, normalised.

    A column of texts is a category, one input for each of its values, or `codes`; `texts` are columns of numbers that
    are categories. One target of texts is classification, of numbers regression, unless `task` says another.
    """
    targets, dropped = _names(target), _names(drop)
    if not targets:
        raise UsageError("data set 'table' needs the option target: the name of the column to predict.")
    categories = [*_names(texts), *(targets if task == "classification" else ())]
    tables = [read_table(file, categories, dropped) for file in _files(path)]
    first = tables[0]
    for name in (*targets, *_names(texts)):
        if name not in first.columns:
            raise UsageError(f"{first.file}: no column '{name}'; its columns: {', '.join(first.columns)}.")
    for other in tables[1:]:
        if list(other.columns) != list(first.columns):
            raise DataError(
                f"{other.file}: columns {', '.join(other.columns)}, expected {', '.join(first.columns)}, as in "
                f"{first.file}."
            )
    inputs = [_input(first, name, encoding) for name in first.columns if name not in targets]
    if not inputs:
        raise UsageError(f"{first.file}: no column is left as input beside {', '.join(targets)}.")
    return _data(tables, inputs, targets, task or _task(first, targets), test_share)


def _data(tables: list[Table], inputs: list[Input], targets: list[str], task: Use, test_share: float) -> Data:
    first = tables[0]
    names = _sorted(first.texts(targets[0])) if task == "classification" else tuple(targets)
    wide = sum(one.width for one in inputs)
    if wide * sum(table.rows for table in tables) > limits.DATA_VALUES:
        raise DataError(f"{first.file}: {wide} inputs a row are too many; drop columns, or take encoding=codes.")
    x = [np.concatenate([one.encode(table) for one in inputs], 1) for table in tables]
    y = [_target(table, targets, task, names) for table in tables]
    if len(tables) == 1:
        train, test = held_out("table", first.rows, test_share)
        x, y = [x[0][train], x[0][test]], [y[0][train], y[0][test]]
    for table, rows in zip(tables, x, strict=False):
        if not len(rows):
            raise DataError(f"{table.file}: no rows below the header.")
    normalization = _normalization(x[0], inputs)
    return Data(
        "table",
        Samples(torch.from_numpy(x[0]), torch.from_numpy(y[0]), normalization),
        Samples(torch.from_numpy(x[1]), torch.from_numpy(y[1]), normalization),
        shape=(x[0].shape[1],),
        outputs=len(names),
        task=task,
        normalization=normalization,
        class_names=names,
        preprocessing={"columns": [one.description() for one in inputs]},
    )


def _files(path: Path) -> list[Path]:
    """One file to be split, or those to train and to test on."""
    if not path.is_dir():
        return [path]
    found = []
    for part in ("train", "test"):
        files = [file for suffix in TABLE_SUFFIXES if (file := path / f"{part}{suffix}").is_file()]
        if len(files) != 1:
            raise DataError(f"{path}: {len(files)} tables '{part}.csv' or '{part}.parquet', expected one.")
        found += files
    return found


def _names(given: Names) -> list[str]:
    return [given] if isinstance(given, str) else list(map(str, given))


def _input(table: Table, name: str, encoding: Literal["one-hot", "codes"]) -> Input:
    values = table.columns[name]
    return Input(name, encoding, _sorted(values)) if isinstance(values, list) else Input(name, "number")


def _sorted(texts: Sequence[str]) -> tuple[str, ...]:
    """The different texts, numbers by their value."""
    try:
        return tuple(sorted(set(texts), key=lambda text: (float(text), text)))
    except ValueError:
        return tuple(sorted(set(texts)))


def _codes(table: Table, column: str, values: Sequence[str]) -> npt.NDArray[np.int64]:
    place = {value: index for index, value in enumerate(values)}
    codes = np.array([place.get(text, -1) for text in table.texts(column)], np.int64)
    unknown = np.flatnonzero(codes < 0)
    if unknown.size:
        row = int(unknown[0])
        listed = ", ".join(values[:20])
        raise table.refuse(row, column, f"'{table.texts(column)[row][:40]}'", f"one of the training table's: {listed}")
    return codes


def _task(table: Table, targets: list[str]) -> Use:
    kinds = {isinstance(table.columns[name], list) for name in targets}
    if kinds == {True} and len(targets) == 1:
        return "classification"
    if kinds == {False}:
        return "regression"
    raise UsageError(
        f"{table.file}: targets {', '.join(targets)} are several columns of texts; name one, or columns of numbers."
    )


def _target(table: Table, targets: list[str], task: Use, names: Sequence[str]) -> Array:
    if task == "classification":
        if len(targets) > 1:
            raise UsageError(f"{table.file}: classification has one target column, got {', '.join(targets)}.")
        return _codes(table, targets[0], names)
    columns = []
    for name in targets:
        values = table.columns[name]
        if isinstance(values, list):
            raise UsageError(f"{table.file}: target '{name}' is a column of texts, {task} needs numbers.")
        wrong = np.flatnonzero((values != 0) & (values != 1))
        if task == "multi-label" and wrong.size:
            raise table.refuse(int(wrong[0]), name, f"{values[wrong[0]]:g}", "0 or 1, a label of multi-label")
        columns.append(values)
    return np.stack(columns, 1).astype(np.float32 if task == "regression" else np.int64)


def _normalization(rows: npt.NDArray[np.float32], inputs: list[Input]) -> Normalization:
    """Numbers get mean 0 and deviation 1 over the training rows; codes and 0 or 1 stay as they are."""
    number = np.concatenate([np.full(one.width, one.kind == "number") for one in inputs])
    mean, deviation = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    mean, deviation = np.where(number, mean, 0.0), np.where(number & (deviation > 0), deviation, 1.0)
    return Normalization(1.0, tuple(mean.tolist()), tuple(deviation.tolist()), axes=0)
