"""DoReFa: the values of the paper's formula, its gradient, a bundle with the same bits, and one file for each part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pages import PACKAGES
from torch import nn

import subbyte
from subbyte import formats
from subbyte.errors import QuantizationError
from subbyte.export import inspect
from subbyte.models.quant import combine, get_scheme, quantize
from subbyte.models.quant.estimators.dorefa import DoReFa, dorefa_activations

W0 = torch.tensor([[0.9, -0.3, 0.05, -1.2], [0.2, 0.1, -0.1, -0.4]])


@pytest.mark.parametrize(
    ("bits", "levels"),
    [
        (1, [[1, -1, 1, -1], [1, 1, -1, -1]]),
        (2, [[3, -1, 1, -3], [1, 1, -1, -1]]),
        (4, [[13, -5, 1, -15], [3, 1, -1, -7]]),
    ],
)
def test_golden_levels(bits: int, levels: list[list[int]]) -> None:
    quantizer = DoReFa(bits).weight_quantizer(W0)
    assert quantizer.codes(W0).tolist() == levels
    assert quantizer.scales().item() == pytest.approx(0.40625 if bits == 1 else 1 / (2**bits - 1))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_are_those_of_equation_9(bits: int) -> None:
    w = torch.randn(5, 60, generator=torch.Generator().manual_seed(bits))
    steps, squashed = 2**bits - 1, np.tanh(w.numpy().astype(float))
    inner = steps * (squashed / (2 * np.abs(squashed).max()) + 0.5)
    clear = np.abs(inner % 1 - 0.5) > 1e-4  # float32 may round a tie to the other side
    found = DoReFa(bits).weight_quantizer(w).fake_quantize(w).numpy()
    np.testing.assert_allclose(found[clear], (2 * np.rint(inner) / steps - 1)[clear], atol=1e-6)
    assert clear.mean() > 0.9


def test_the_gradient_goes_through_tanh_and_its_maximum() -> None:
    w, grad = W0.clone().requires_grad_(), torch.arange(1.0, 9.0).reshape(2, 4)
    DoReFa(3).weight_quantizer(w).fake_quantize(w).backward(grad)
    squashed, given = np.tanh(W0.numpy().astype(float)), grad.numpy().astype(float)
    largest = np.abs(squashed).max()
    expected = given / largest
    expected[0, 3] -= np.sign(squashed[0, 3]) * (given * squashed).sum() / largest**2
    np.testing.assert_allclose(w.grad.numpy(), expected * (1 - squashed**2), rtol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("bits", range(2, 9))
def test_activations_are_those_of_equations_5_and_11(bits: int) -> None:
    quantizer, steps = dorefa_activations(bits).activation_quantizer(nn.Linear(1, 1)), 2**bits - 1
    x = torch.tensor([-0.2, 0.0, 0.1, 0.5, 0.9, 1.0, 1.3], requires_grad=True)
    expected = np.rint(x.detach().numpy() * np.float32(steps)).clip(0, steps)  # one float32 product, ties to even
    assert quantizer.codes(x).tolist() == expected.tolist()
    every = torch.arange(steps + 1) / steps
    assert quantizer.codes(every).tolist() == list(range(steps + 1))
    quantizer.fake_quantize(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]  # type: ignore[union-attr]


def test_zeros_and_impossible_bits() -> None:
    zeros = torch.zeros(2, 3, requires_grad=True)
    value = DoReFa(4).weight_quantizer(zeros).fake_quantize(zeros)
    value.sum().backward()
    assert torch.equal(value * 15, torch.ones(2, 3))
    assert bool(zeros.grad.isfinite().all())  # type: ignore[union-attr]
    for make in (lambda: DoReFa(0), lambda: DoReFa(9), lambda: dorefa_activations(0), lambda: dorefa_activations(1)):
        with pytest.raises(QuantizationError, match="bits"):
            make()


def test_odd_levels() -> None:
    odd = formats.get("odd3")
    assert odd.table == (-7, -5, -3, -1, 1, 3, 5, 7)
    assert odd.levels.line == (-7, 2)  # type: ignore[union-attr]
    assert formats.get("odd8").largest == 255


@pytest.mark.parametrize("bits", [2, 8])
def test_a_bundle_gives_the_same_bits(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    images = torch.rand(4, 3, 6, 6)
    quantize(model, get_scheme("dorefa", weight_bits=bits, keep=None), example=images)(images)
    assert subbyte.export(model.eval(), tmp_path / "m.onnx", example=images).verification.exact  # type: ignore[union-attr]
    assert {row.weight_format for row in inspect(tmp_path / "m.onnx").layers} == {f"odd{bits}"}
    report = subbyte.compile(tmp_path / "m.onnx", tmp_path / "m.subbyte", target="host")
    assert not any(row.fallback for row in report.rows)
    with subbyte.load(tmp_path / "m.subbyte") as session, torch.no_grad():
        np.testing.assert_array_equal(session.run(images[:1].numpy()), model(images[:1]).numpy())


def test_digits_are_learned(tmp_path: Path) -> None:
    """2-bit weights and 4-bit activations in every layer, inputs too: of ten classes, 0.89 after four epochs."""
    options = {"weight_bits": 2, "keep": None}
    result = subbyte.train("mlp", data="digits", scheme="dorefa", epochs=4, out=tmp_path, scheme_options=options,
                           progress=False, accelerator="cpu")  # fmt: skip
    assert result.accuracy > 0.85


def test_it_is_one_file_and_its_format_another() -> None:
    """No other module knows the name, and its halves combine with those of other methods."""
    code = Path(formats.__file__).parents[1]
    files = [file for name in PACKAGES for file in (code / name).rglob("*.py")]
    assert [file.name for file in files if "dorefa" in file.read_text().lower()] == ["odd_integer.py", "dorefa.py"]
    assert combine("dorefa", "int8").weights == DoReFa(4)
    assert combine("ternary", "dorefa", bits=2).activations == dorefa_activations(2)
