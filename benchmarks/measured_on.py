"""What a figure is measured on, for programs without a session of their own: a small model's library is asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx.parser

import subbyte

SMALLEST = """<ir_version: 10, opset_import: ["" : 21]>
smallest (float[4] x) => (float[4] y) { y = Relu(x) }"""


def measured_on() -> dict[str, Any]:
    """The keys of `machine` of `subbyte bench --json`."""
    with tempfile.TemporaryDirectory(prefix="subbyte-") as folder:
        path = Path(folder) / "smallest.subbyte"
        subbyte.compile(onnx.parser.parse_model(SMALLEST), path)
        with subbyte.load(path, threads=1) as session:
            return session.machine()[0].to_json()
