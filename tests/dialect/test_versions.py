"""Files that hold each version of the dialect are read for ever, and docs/onnx-dialect.md names today's functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import subbyte
from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION
from subbyte.dialect.table import written
from subbyte.export import inspect, run_onnx
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.onnx_model import load_model

FILES = Path(__file__).parent / "files"
PAGE = Path(__file__).parents[2] / "docs" / "onnx-dialect.md"
# The calls of the file of each version. Add a file with every version: what `export` wrote, and what onnxruntime gave.
CALLS = {
    1: """
        Quantize DecodeTernary Binarize DecodeBinary Quantize DecodeInt4 Quantize DecodePow2_4 QuantizePerToken
        DequantizeInt4
    """,
}


def test_every_version_has_a_file() -> None:
    assert list(CALLS) == list(range(1, DOMAIN_VERSION + 1))


@pytest.mark.parametrize("version", CALLS)
def test_a_file_of_that_version_is_read(version: int, tmp_path: Path) -> None:
    """Its functions are ours, and every engine computes what was computed when it was written."""
    path = FILES / f"version_{version}.onnx"
    with np.load(FILES / f"version_{version}.npz") as stored:
        x, expected = stored["x"], [stored[name] for name in stored.files if name != "x"]
    notes: list[str] = []
    model = load_model(path, notes)
    assert [node.op_type for node in model.graph.node if node.domain == DOMAIN] == CALLS[version].split()
    assert notes == []
    assert inspect(path).warnings == ()
    compile(path, tmp_path / "m.subbyte", strict=True)
    with subbyte.load(tmp_path / "m.subbyte") as session:
        compiled = list(session.run([x]).values())
    for found in (list(run_onnx(path, x).values()), compiled):
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, atol=1e-5)  # by group: a float sum
        np.testing.assert_array_equal(found[1], expected[1])


def test_the_page_lists_the_functions() -> None:
    """Else: python -m subbyte.dialect.table docs/onnx-dialect.md"""
    text = PAGE.read_text(encoding="utf-8")
    assert text == written(text)
