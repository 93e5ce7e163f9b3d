"""Small untrained networks of every scheme as ONNX, for compiling to devices."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from subbyte.export.exporter import export
from subbyte.models import untrained


@cache
def small_model(name: str, scheme: str) -> onnx.ModelProto:
    """An untrained network of the zoo on 8x8 images, quantized."""
    model, examples = untrained(name, scheme)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}_{scheme}.onnx"
        export(model, path, example=examples, check=False)
        return onnx.load(path)
