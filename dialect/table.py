"""Generates the table of functions in docs/onnx-dialect.md: `python -m subbyte.dialect.table docs/onnx-dialect.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from subbyte.dialect.function import Function, PackedWeights, all_functions
from subbyte.files.output import write_file

BEGIN, END = "<!-- functions: ", "<!-- end of functions -->"


def table() -> str:
    """One row per function; one row for the decoders of all formats, one for their dequantizers."""
    return "\n".join(["| function | inputs | outputs | what it computes |", "|---|---|---|---|", *_rows()]) + "\n"


def written(page: str) -> str:
    """The page, with the table between its marks replaced."""
    begin = page.index("\n", page.index(BEGIN)) + 1
    return page[:begin] + table() + page[page.index(END) :]


def _rows() -> Iterator[str]:
    functions = sorted(all_functions(), key=lambda function: function.name)
    of_formats: dict[bool, Function] = {}
    for function in functions:
        if isinstance(function.role, PackedWeights):
            of_formats.setdefault(function.role.by_group, function)
        else:
            yield _row(f"`{function.name}`", function, function.summary)
    for by_group, function in of_formats.items():
        name, summary = "Decode", "the levels of packed codes, of `shape`"
        if by_group:
            name, summary = "Dequantize", "the same times the scale of each group of `group_size` elements in a row"
        yield _row(f"`{name}<Format>`", function, summary)


def _row(name: str, function: Function, summary: str) -> str:
    values = [", ".join(names) for names in (function.proto.input, function.proto.output)]
    return f"| {name} | {values[0]} | {values[1]} | {summary.rstrip('.')} |"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_file(path, written(path.read_text(encoding="utf-8")).encode())
