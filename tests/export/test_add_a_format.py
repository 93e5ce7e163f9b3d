"""docs/add-a-format.md, followed in a copy of the package: one file in `formats/`, and no other edit."""

from __future__ import annotations

from pathlib import Path

from pages import copy_package, new_file, python_blocks, run_copy, text_of

PAGE = "docs/add-a-format.md"
# Every process knows the format, without naming its file.
KNOWN = """
from subbyte.formats import get
from subbyte.dialect.function import find

assert get("quinary").levels.levels == (-2, -1, 0, 1, 2)
assert find("DecodeQuinary").role.format is find("DequantizeQuinary").role.format is get("quinary")
"""

CHECK = """
import numpy as np
import subbyte
from subbyte.export import inspect, run_onnx

layers = inspect("quinary.onnx").layers
assert [layer.weight_format for layer in layers] == ["int8", "quinary", "int8"], layers
x = images[:1].numpy()
with torch.no_grad():
    expected = model(images[:1]).numpy()
assert np.array_equal(run_onnx("quinary.onnx", x)["logits"], expected)
with subbyte.load("quinary.subbyte") as session:
    result = session.run(x)
result = next(iter(result.values())) if isinstance(result, dict) else result
assert np.array_equal(result, expected), (result, expected)

from subbyte.export import float_baseline
from subbyte.runtime.energy_model import model_energy
from subbyte.runtime.bundle import open_bundle

x = np.random.default_rng(1).standard_normal((5, 100)).astype(np.float32)
expected = x.astype(np.float64) @ weight.dequantize().T
close = dict(rtol=1e-5, atol=1e-5)
np.testing.assert_allclose(run_onnx("cubes.onnx", x)["y"], expected, **close)
onnx.save(float_baseline("cubes.onnx"), "float.onnx")
np.testing.assert_allclose(run_onnx("float.onnx", x)["y"], expected, **close)
assert [layer.weight_format for layer in inspect("cubes.onnx").layers] == ["cubes/32"]
with subbyte.load("cubes.subbyte") as session:
    np.testing.assert_allclose(session.run(x), expected, **close)
with open_bundle("cubes.subbyte") as opened:
    energy = model_energy(opened.manifest).operators[0]
np.testing.assert_allclose(energy.modelled_compute_pj, 5 * 100 * 24 * 14.6 + 5 * 24 * 4.6)
found = subbyte.bench("cubes.subbyte", iterations=3, warmup=1, seconds=None)
assert found.energy_modelled.operators[0].arithmetic.startswith("8 KB table read")
print("all is well")
"""


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    file, *rest = python_blocks(PAGE)
    assert len(rest) == 5
    package = copy_package(tmp_path)
    (package / new_file(PAGE)).write_text(file, encoding="utf-8")
    run_copy(KNOWN, tmp_path)
    first = "from subbyte.formats.quinary import QUINARY"
    assert f"`{first}`" in text_of(PAGE)
    assert run_copy("\n".join([first, *rest, CHECK]), tmp_path).rstrip().endswith("all is well")
