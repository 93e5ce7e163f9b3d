"""The measured tables of README and docs/ are what the JSON of the benchmarks says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
assert spec is not None
assert spec.loader is not None
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def test_every_table_is_what_its_json_says() -> None:
    assert tables.outdated() == [], "run `python benchmarks/tables.py`"


def test_a_changed_figure_and_a_lost_table_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    text = (ROOT / "docs" / "results.md").read_text()
    figure = re.search(r"\d+\.\d\d%", text)
    assert figure is not None
    page.write_text(text.replace(figure[0], "99.99%", 1).replace("<!-- table: sizes -->\n", ""))
    assert tables.outdated([page]) == [
        "results.md: accuracy",
        "in no document: demo",
        "in no document: sizes",
        "in no document: compile_time",
        "in no document: limits",
        "in no document: fuzzers",
    ]
    page.write_text(text.replace(figure[0], "99.99%", 1))
    assert tables.written(page.read_text()) == text


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(KeyError, match="layerz"):
        tables.written("<!-- table: layerz -->\n<!-- end -->\n")
