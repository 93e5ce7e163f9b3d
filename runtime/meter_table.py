"""The text of a meter's CSV log as a table of numbers: encoding, delimiter, decimal mark, header, comments, a torn end.

What instruments and spreadsheets write: UTF-8, UTF-16 or Windows' own encoding; comma, semicolon or tab; a decimal
comma where the comma does not delimit; lines of comments (#, %, //) and Excel's "sep=;"; a row of units below the
header; a last line that the meter is still writing. Anything else that is not a number is an error that names the line.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

_NUMBER = re.compile(r"[+-]?(?:[0-9]+[.,]?[0-9]*|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True)
class Log:
    """A log: the cells of its header, of the row of units below it (or none), and its rows with their line numbers."""

    header: list[str]
    units: list[str]
    rows: Iterator[tuple[int, list[str]]]
    delimiter: str


def read_log(data: bytes) -> Log:
    """The log in a file's bytes; raises ValueError (csv.Error, UnicodeError) where there is none."""
    lines = _lines(_text(data))
    first = next(lines, (1, ""))
    if first[1].lower().startswith("sep="):
        first = next(lines, first)
    delimiter = next((mark for mark in "\t;" if mark in first[1]), ",")
    header = _cells(first[1], delimiter)
    rows = ((number, _cells(line, delimiter)) for number, line in lines)
    below = next(rows, None)
    if below is None:
        return Log(header, [], rows, delimiter)
    if any(re.search(r"[0-9]", cell) for cell in below[1]):
        return Log(header, [], chain([below], rows), delimiter)
    return Log(header, below[1], rows, delimiter)


def numbers(log: Log, columns: Sequence[int]) -> Iterator[list[float]]:
    """The numbers of these columns, row by row; raises ValueError with the line where a cell is none."""
    marks: set[str] = set()
    for line, row in log.rows:
        if len(row) > len(log.header):
            raise ValueError(
                f"line {line} has {len(row)} cells, the header {len(log.header)} (a decimal comma needs ';' or a tab "
                f"between columns)"
            )
        values = []
        for column in columns:
            cell = row[column] if column < len(row) else ""
            marks.update(mark for mark in ".," if mark in cell)
            if not _NUMBER.fullmatch(cell) or log.delimiter in cell or len(marks) > 1:
                mixed = ", with decimal commas and points in one file" if len(marks) > 1 else ""
                raise ValueError(f"line {line}, column '{log.header[column]}' holds '{cell[:40]}'{mixed}: not a number")
            values.append(float(cell.replace(",", ".")))
        yield values


def _text(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding)
    if b"\0" in data[:64]:  # UTF-16 of letters without a mark: every other byte is 0
        return _decoded(data, "utf-16-be" if data[0] == 0 else "utf-16-le")
    try:
        return _decoded(data, "utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252")  # letters beyond ASCII only occur in names, and only known units are accepted


def _decoded(data: bytes, encoding: str) -> str:
    """The text; a character that is cut at the end is left out."""
    return codecs.getincrementaldecoder(encoding)().decode(data)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Whole lines with their numbers, less comments and empty ones; a last line without an end may be half of one."""
    start, number = 0, 0
    for end in re.finditer(r"\r\n|\n|\r", text):
        line, start, number = text[start : end.start()].strip(" "), end.end(), number + 1
        if line.strip(",; \t") and not line.startswith(("#", "%", "//")):
            yield number, line


def _cells(line: str, delimiter: str) -> list[str]:
    cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    while cells and not cells[-1]:  # a delimiter at the end of the line
        del cells[-1]
    return cells
