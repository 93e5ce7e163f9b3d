"""A network with several outputs of different shapes and types: each has the golden bits on every emulated device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emulators import RUN, Outcome
from torch import Tensor, nn

from subbyte.export import export
from subbyte.models import quantize
from subbyte.runtime.bundle import open_bundle
from subbyte.runtime.golden import golden_outputs
from subbyte.tvm_kernels.compiler import compile

pytestmark = pytest.mark.device


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.boxes, self.head = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 6, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.stem(x).relu()
        boxes = self.boxes(features)
        return {
            "logits": self.head(features.amax((2, 3))),
            "boxes": boxes.flatten(2).transpose(1, 2),
            "features": features,
            "best": boxes.argmax(1),
            "highest": boxes.abs().amax((0, 1, 2, 3)),
        }


@pytest.mark.parametrize("scheme", ["ternary", "binary"])
@pytest.mark.parametrize(("target", "run"), RUN.items())
def test_every_output_has_the_golden_bits(
    target: str, run: Callable[..., Outcome], scheme: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = quantize(Heads(), scheme, example=torch.randn(1, 1, 8, 8))
    model(torch.randn(8, 1, 8, 8))
    export(model.eval(), tmp_path / "m.onnx", example=torch.zeros(1, 1, 8, 8))
    compile(tmp_path / "m.onnx", tmp_path / "m.subbyte", target=target, strict=True)
    with open_bundle(tmp_path / "m.subbyte") as bundle:
        members = {name: bundle.read(name) for name in bundle.manifest.members}
        golden = golden_outputs(bundle)
    assert [str(array.dtype) for array in golden] == ["float32", "float32", "float32", "int64", "float32"]
    assert run(members, golden, tmp_path) == (True, [0, 0, 0, 0, 0])
