"""The streaming convolution: a signal in pieces gives what the convolution of the whole gives, in every stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recurrent import keyword_spotter
from torch import nn

import subbyte
from subbyte.dialect.state import initial_value, states
from subbyte.errors import QuantizationError
from subbyte.export.engine import open_session
from subbyte.export.onnx_file import load_onnx
from subbyte.models.layers.streaming_convolution import StreamingConv1d

STEPS = 1000


def whole(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """The model of the whole signal: each convolution over all of it, without a state."""
    for layer in model:
        x = layer.whole(x) if isinstance(layer, StreamingConv1d) else layer(x)
    return x


@pytest.mark.parametrize("scheme", ["float", "int8", "ternary", "pow2", "binary"])
@pytest.mark.parametrize("piece", [1, 3, 40])
def test_pieces_are_the_whole_signal(scheme: str, piece: int) -> None:
    model = keyword_spotter(scheme)
    x = torch.randn(2, 10, 120)
    with torch.no_grad():
        expected = whole(model, x)
        got = torch.cat([model(x[:, :, at : at + piece]) for at in range(0, 120, piece)], 2)
    if scheme == "float":
        torch.testing.assert_close(got, expected)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("scheme", ["int8", "ternary", "binary"])
def test_a_thousand_steps_of_the_file_are_the_whole_signal(scheme: str, tmp_path: Path) -> None:
    model = keyword_spotter(scheme)
    report = subbyte.export(model, tmp_path / "m.onnx", example=torch.zeros(1, 10, 1))
    assert report.verification is not None
    assert report.verification.exact
    file = load_onnx(tmp_path / "m.onnx")
    assert [state.input for state in states(file)] == ["0.past", "2.past"]
    values = {state: initial_value(file, state) for state in states(file)}
    assert [(value.dtype, value.shape) for value in values.values()] == [(np.uint8, (1, 8, 10)), (np.uint8, (1, 8, 32))]
    x = np.random.default_rng(0).normal(size=(1, 10, STEPS)).astype(np.float32)
    with torch.no_grad():
        expected = whole(model, torch.from_numpy(x)).numpy()
    session = open_session(file, optimized=False)
    names = ["logits", *(state.output for state in values)]
    for at in range(STEPS):
        fed = {"input": x[:, :, at : at + 1]} | {state.input: value for state, value in values.items()}
        logits, *after = session.run(names, fed)
        np.testing.assert_array_equal(logits, expected[:, :, at : at + 1])
        values = dict(zip(values, after, strict=True))
    print(f"{scheme}: {STEPS:,} steps, {expected.size:,} elements equal to the convolution of the whole signal")


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"padding": "same"}])
def test_a_convolution_that_cannot_stream_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(QuantizationError, match="stride 1 and no padding, got stride"):
        StreamingConv1d(nn.Conv1d(3, 4, 3, **options))  # type: ignore[arg-type]
