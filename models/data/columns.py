"""Columns of a table in CSV or Parquet, each of numbers or of texts, with an error for every cell that is neither."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import DataError, MissingDependencyError, one_line
from subbyte.files import limits
from subbyte.files.plain import read_plain

TABLE_SUFFIXES = (".csv", ".parquet")
DELIMITERS = (",", ";", "\t")
MISSING = frozenset({"", "na", "n/a", "nan", "null"})  # in lower case: no value, in a CSV file


@dataclass(frozen=True)
class Table:
    """Columns by name, float64 [rows] or texts, and where each row is, for errors."""

    file: Path
    columns: dict[str, npt.NDArray[np.float64] | list[str]]
    rows: int
    place: Callable[[int], str]  # "line 7" of a row

    def refuse(self, row: int, column: str, got: str, expected: str) -> DataError:
        """The error of a cell."""
        return DataError(f"{self.file}: {self.place(row)}, column '{column}': got {got}, expected {expected}.")

    def texts(self, column: str) -> list[str]:
        """A column as texts; whole numbers without a point."""
        values = self.columns[column]
        return values if isinstance(values, list) else [f"{value:.17g}" for value in values]


def read_table(file: Path, texts: Collection[str] = (), drop: Collection[str] = ()) -> Table:
    """Read a CSV file with a header, or a Parquet file; columns of `texts` are texts even where they are numbers.

    Cells of a CSV file are separated by commas, semicolons or tabs: the one that its header has. Columns of `drop` are
    left out. Raises DataError with row and column for a missing value, and for numbers and texts in one column.
    """
    try:
        content = read_plain(file, limits.TABLE_BYTES)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}).") from error
    if file.suffix.lower() == ".parquet":
        return _parquet(file, content, texts, drop)
    return _csv(file, content, texts, drop)


def _csv(file: Path, content: bytes, texts: Collection[str], drop: Collection[str]) -> Table:
    rows, lines = [], []
    try:
        text = content.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(file, text), strict=True)
        names = [name.strip() for name in next(reader, [])]
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(f"{file}: line {reader.line_num} has {len(row)} cells, expected {len(names)}.")
            rows.append(row)
            lines.append(reader.line_num)
            if len(rows) * len(names) > limits.TABLE_CELLS:
                raise DataError(f"{file}: more than {limits.TABLE_CELLS} cells; take a part of the table.")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV file in UTF-8 ({error}).") from error
    _refuse_names(file, names, drop)
    table = Table(file, {}, len(rows), lambda row: f"line {lines[row]}")
    for index, name in enumerate(names):
        if name not in drop:
            table.columns[name] = _cells(table, name, [row[index].strip() for row in rows], name in texts)
    return table


def _delimiter(file: Path, text: str) -> str:
    found = [one for one in DELIMITERS if one in text.split("\n", 1)[0]]
    if len(found) > 1:
        raise DataError(
            f"{file}: the header has {' and '.join(map(repr, found))}, expected one kind between its names."
        )
    return found[0] if found else ","


def _cells(table: Table, name: str, cells: list[str], text: bool) -> npt.NDArray[np.float64] | list[str]:
    for row, cell in enumerate(cells):
        if cell.lower() in MISSING:
            raise table.refuse(row, name, f"'{cell}'", "a value; leave out the row or the column, or fill it")
    if text:
        return cells
    numbers = [_number(cell) for cell in cells]
    first = next((row for row, value in enumerate(numbers) if value is None), None)
    if first is None:
        return np.array(numbers, np.float64)
    other = next((row for row, value in enumerate(numbers) if value is not None), None)
    if other is not None:
        raise table.refuse(
            first,
            name,
            f"'{cells[first][:40]}'",
            f"a number, as in {table.place(other)}; or name the column in `texts`",
        )
    return cells


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in cell else None


def _parquet(file: Path, content: bytes, texts: Collection[str], drop: Collection[str]) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "tables") from error
    try:
        opened = parquet.ParquetFile(pyarrow.BufferReader(content))
        head = opened.metadata
        size = sum(head.row_group(index).total_byte_size for index in range(head.num_row_groups))
        if head.num_rows * head.num_columns > limits.TABLE_CELLS or size > limits.TABLE_BYTES:
            raise DataError(
                f"{file}: {head.num_rows} rows of {head.num_columns} columns in {size} bytes, at most "
                f"{limits.TABLE_CELLS} cells and {limits.TABLE_BYTES} bytes are read."
            )
        read = opened.read()
    except DataError:
        raise
    except Exception as error:  # what a decoder raises on a damaged file
        raise DataError(f"{file}: not a Parquet file that can be read ({one_line(error)}); write it again.") from error
    _refuse_names(file, read.column_names, drop)
    table = Table(file, {}, read.num_rows, lambda row: f"row {row + 1}")
    for name in read.column_names:
        if name not in drop:
            table.columns[name] = _arrow(table, name, read.column(name), name in texts)
    return table


def _arrow(table: Table, name: str, column: Any, text: bool) -> npt.NDArray[np.float64] | list[str]:
    import pyarrow

    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    values = column.to_pylist()
    for row, value in enumerate(values):
        if value is None:
            raise table.refuse(row, name, "null", "a value; leave out the row or the column, or fill it")
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return [str(value) for value in values]
    is_number = any(is_kind(kind) for is_kind in (pyarrow.types.is_integer, pyarrow.types.is_floating))
    if not is_number and not pyarrow.types.is_boolean(kind):
        raise DataError(
            f"{table.file}: column '{name}' is of {kind}, expected numbers, truth values or texts; drop it."
        )
    if text:
        return [str(value) for value in values]
    numbers = np.array(values, np.float64)
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if wrong.size:
        raise table.refuse(int(wrong[0]), name, str(numbers[wrong[0]]), "a finite number")
    return numbers


def _refuse_names(file: Path, names: Sequence[str], drop: Collection[str]) -> None:
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if not names or "" in names or twice is not None:
        what = f"two columns '{twice}'" if twice is not None else f"the header {list(names)[:10]}"
        raise DataError(f"{file}: {what}; expected a first line with a name for each column, all different.")
    unknown = [name for name in drop if name not in names]
    if unknown:
        raise DataError(f"{file}: no column '{unknown[0]}' to drop; its columns: {', '.join(names)}.")
