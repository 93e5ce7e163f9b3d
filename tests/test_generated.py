"""The files that programs write from the code are what the code says now."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from subbyte.runtime import features
from subbyte.runtime.features import Bit, Feature

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("generate", ROOT / "generate" / "__main__.py")
assert spec is not None
assert spec.loader is not None
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def test_every_generated_file_is_up_to_date() -> None:
    assert generate.outdated() == [], "run `make generate`"


def test_a_changed_file_and_a_missing_one_are_seen(tmp_path: Path) -> None:
    paths = list(generate.generated())
    assert "runtime/c/cpu_features.h" in paths
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    assert generate.outdated(tmp_path) == []
    changed = tmp_path / paths[0]
    changed.write_bytes(changed.read_bytes().replace(b"\n", b"\r\n"))
    assert generate.outdated(tmp_path) == [paths[0]]
    changed.unlink()
    assert generate.outdated(tmp_path) == [paths[0]]


def test_a_feature_is_one_row_of_the_register_and_one_of_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> set[str]:
        return {line.strip(" \\") for line in generate.generated()["runtime/c/cpu_features.h"].splitlines()}

    before = rows()
    monkeypatch.setitem(features._rows, "aes", Feature("aes", "x86", "aes", Bit("LEAF_1_ECX", 25)))
    assert rows() - before == {'ROW("aes", LEAF_1_ECX, 25, 0x0)'}
