"""Small untrained networks of every scheme as ONNX, for compiling to devices."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch

from subbyte.export.exporter import export
from subbyte.models import zoo
from subbyte.models.quant import quantize


@cache
def small_model(name: str, scheme: str) -> onnx.ModelProto:
    """An untrained network of the zoo on 8x8 images, quantized, with batch norm statistics of random data."""
    torch.manual_seed(0)
    examples = torch.randn(8, 1, 8, 8)
    model = zoo.create_for_scheme(name, scheme, channels=1, size=8)
    quantize(model, scheme, examples)
    model.train()
    for _ in range(2):
        model(torch.randn(8, 1, 8, 8))
    model.eval()
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}_{scheme}.onnx"
        export(model, path, example=examples, check=False)
        return onnx.load(path)
