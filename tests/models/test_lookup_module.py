"""The module of table look-ups: the function at each level, with a gradient, and again when a parameter changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subbyte
from subbyte.errors import ExportError, QuantizationError
from subbyte.models.quant import DynamicPerToken, LearnedStep, fake_quantized
from subbyte.models.quant.lookup import Lookup
from subbyte.models.quant.primitives import call


@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("shift", [0, 9])
def test_every_level_has_the_value_of_the_function(bits: int, shift: int) -> None:
    """Signed codes, and unsigned ones where the first batch has no negative value."""
    module = Lookup(torch.exp, LearnedStep(bits))
    module(torch.linspace(-3, 3, 600) + shift)
    module.eval()
    quantizer = module.activation_quantizer
    levels = torch.tensor([float(level) for level in quantizer.format.table if level is not None]).sort().values
    assert float(levels[0]) == (0 if shift else -(2 ** (bits - 1)))
    got = module(levels * quantizer.scales() * 1.001)  # still the nearest level
    np.testing.assert_allclose(got.detach().numpy(), torch.exp(levels * quantizer.scales()).detach().numpy(), rtol=1e-6)


def test_it_is_trained_through_its_function() -> None:
    module = Lookup(nn.PReLU(init=0.3))
    x = torch.linspace(-2, 2, 64, requires_grad=True)
    module(x).sum().backward()
    slope = next(module.function.parameters())  # type: ignore[union-attr]
    assert float(slope.grad) == pytest.approx(float(x.detach().clamp_max(0).sum()), rel=0.02)  # type: ignore[arg-type]
    assert x.grad is not None
    assert float(x.grad[10]) == pytest.approx(0.3)
    assert float(x.grad[50]) == pytest.approx(1.0)
    module.eval()
    before = module(x).detach()
    with fake_quantized(module):
        np.testing.assert_allclose(module(x).detach().numpy(), before.numpy(), rtol=1e-6)
    with torch.no_grad():
        slope.fill_(0.6)
    np.testing.assert_allclose(module(x).detach()[:10].numpy(), 2 * before[:10].numpy(), rtol=1e-6)


def test_a_step_found_at_run_time_has_no_table() -> None:
    class PerToken(nn.Linear):
        """A layer that has tokens."""

    module = Lookup(F.gelu)
    module.activation_quantizer = DynamicPerToken().activation_quantizer(PerToken(2, 2))
    with pytest.raises(QuantizationError, match="a per-token quantizer has no stored scale"):
        module.eval()(torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7)])
def test_a_look_up_alone_goes_to_a_file_and_comes_back(shape: tuple[int, ...], tmp_path) -> None:
    module = Lookup(torch.sigmoid)
    x = torch.randn(shape, generator=torch.manual_seed(0)) + 0.1
    module(x)
    report = subbyte.export(module.eval(), tmp_path / "m.onnx", example=x, batch=shape[0], inputs=x)
    assert report.verification is not None
    assert report.verification.exact
    subbyte.compile(tmp_path / "m.onnx", tmp_path / "m.subbyte", target="host", strict=True)
    with subbyte.load(tmp_path / "m.subbyte") as session:
        np.testing.assert_array_equal(session.run(x.numpy()), module(x).detach().numpy())


def test_a_call_of_the_dialect_is_made_in_an_export_alone() -> None:
    with pytest.raises(ExportError, match=r"subbyte\.Binarize is called outside of an export"):
        call("Binarize", torch.zeros(2), torch.zeros(()))
