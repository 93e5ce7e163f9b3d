"""Files that hold each version of the dialect are read for ever, and docs/onnx-dialect.md names today's functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import subbyte
from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION
from subbyte.dialect.table import written
from subbyte.export import inspect, run_onnx
from subbyte.runtime.golden import within_tolerance
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.onnx_model import load_model

FILES = Path(__file__).parent / "files"
SUMS_OF_FLOATS = {"add34.0", "decodenf4_product"}  # by group, or of real levels; and what dequantize<format> is in
PAGE = Path(__file__).parents[2] / "docs" / "onnx-dialect.md"
# The version and calls of each file. Add one with every version: what `export` wrote, and what onnxruntime gave.
CALLS = {
    "version_1": (
        1,
        """
        Quantize DecodeTernary Binarize DecodeBinary Quantize DecodeInt4 Quantize DecodePow2_4 QuantizePerToken
        DequantizeInt4
        """,
    ),
    "version_1_functions": (  # each of that version, once
        1,
        """
        Quantize Binarize QuantizePerToken Lookup
        DecodeBinary DequantizeBinary DecodeInt2 DequantizeInt2 DecodeInt3 DequantizeInt3 DecodeInt4 DequantizeInt4
        DecodeInt5 DequantizeInt5 DecodeInt6 DequantizeInt6 DecodeInt7 DequantizeInt7 DecodeInt8 DequantizeInt8
        DecodeUint2 DequantizeUint2 DecodeUint3 DequantizeUint3 DecodeUint4 DequantizeUint4 DecodeUint5 DequantizeUint5
        DecodeUint6 DequantizeUint6 DecodeUint7 DequantizeUint7 DecodeUint8 DequantizeUint8 DecodeNf4 DequantizeNf4
        DecodePow2_2 DequantizePow2_2 DecodePow2_3 DequantizePow2_3 DecodePow2_4 DequantizePow2_4
        DecodePow2_5 DequantizePow2_5 DecodePow2_2n DequantizePow2_2n DecodePow2_3n DequantizePow2_3n
        DecodePow2_4n DequantizePow2_4n DecodePow2_5n DequantizePow2_5n DecodeTernary DequantizeTernary
        """,
    ),
}


def test_every_version_has_a_file() -> None:
    assert {version for version, _ in CALLS.values()} == set(range(1, DOMAIN_VERSION + 1))


@pytest.mark.parametrize("name", CALLS)
def test_a_file_of_that_version_is_read(name: str, tmp_path: Path) -> None:
    """Its functions are ours, and every engine computes what was computed when it was written."""
    path, (version, calls) = FILES / f"{name}.onnx", CALLS[name]
    with np.load(FILES / f"{name}.npz") as stored:
        x, expected = stored["x"], [stored[output] for output in stored.files if output != "x"]
    notes: list[str] = []
    model = load_model(path, notes)
    assert [entry.version for entry in model.opset_import if entry.domain == DOMAIN] == [version]
    assert [node.op_type for node in model.graph.node if node.domain == DOMAIN] == calls.split()
    assert notes == []
    assert inspect(path).warnings == ()
    compile(path, tmp_path / "m.subbyte", strict=True)
    with subbyte.load(tmp_path / "m.subbyte") as session:
        compiled = session.run({session.inputs[0].name: x})
    assert isinstance(compiled, dict)
    for found in (run_onnx(path, x), compiled):
        for (output, got), values in zip(found.items(), expected, strict=True):
            if output in SUMS_OF_FLOATS or output.startswith("dequantize"):
                assert within_tolerance(got, values).all(), output
            else:
                np.testing.assert_array_equal(got, values, err_msg=output)


def test_the_page_lists_the_functions() -> None:
    """Else: python -m subbyte.dialect.table docs/onnx-dialect.md"""
    text = PAGE.read_text(encoding="utf-8")
    assert text == written(text)
