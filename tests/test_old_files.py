"""What subbyte 0.1.0 wrote at commit 8b5a042, before the dialect was a package of its own, is read, and runs the same.

`ternary` is resnet8 of width 4 after three epochs on the digits, with its checkpoint; `binary` and `int4` are an
untrained network of a convolution, a strided, a depthwise one and two linear layers. The .npz files hold an input and
what onnxruntime gave for it. The bundles lack `bench` and `library.a`, which no runtime reads; those for x86-64 ask for
no feature of the CPU.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from this_machine import needs_x86_64

import subbyte
from subbyte.errors import BundleError
from subbyte.export import inspect, run_onnx
from subbyte.runtime.bundle import open_bundle
from subbyte.runtime.energy_model import model_energy
from subbyte.runtime.golden import within_tolerance

FILES = Path(__file__).parent / "old_files"
# What `inspect` said of each: layers by the format of their weights. A Conv of ones in float is an average pool.
LAYERS = {
    "binary": {"int8": 2, "binary": 3, "float32": 1},
    "ternary": {"int8": 2, "ternary": 8},
    "int4": {"int8": 2, "int4": 3, "float32": 1},
}
MACS = {
    "binary": 106_992,
    "ternary": 49_568,
    "int4": 106_992,
}  # of a bundle, where that pool adds and does not multiply

ENERGY_PJ = {"binary": 27_146.0, "ternary": 22_741.0}  # modelled then, of operators that do not say what a MAC is


@pytest.mark.parametrize("name", LAYERS)
def test_an_onnx_file_is_read_by_every_command(name: str, tmp_path: Path) -> None:
    path = FILES / f"{name}.onnx"
    with np.load(FILES / f"{name}.npz") as stored:
        x, expected = stored["x"], stored["logits"]
    np.testing.assert_array_equal(run_onnx(path, x)["logits"], expected)
    found = inspect(path)
    assert found.warnings == ()
    formats = [layer.weight_format for layer in found.layers]
    assert {fmt: formats.count(fmt) for fmt in formats} == LAYERS[name]
    report = subbyte.compile(path, tmp_path / "m.subbyte", strict=True)
    assert (report.macs, report.fallbacks, report.notes) == (MACS[name], (), ())
    with subbyte.load(tmp_path / "m.subbyte") as session:
        got = session.run(x)
    assert within_tolerance(got, expected).all()


def test_a_checkpoint_its_file_and_its_bundle_agree(tmp_path: Path) -> None:
    found = subbyte.check(FILES / "ternary", FILES / "ternary.onnx", FILES / "ternary-x86-64.subbyte")
    assert found.quantized_layers == 11  # and the pool
    assert [stage.differing_codes for stage in found.stages] == [0, 0, 0, 0]
    assert not found.diverged
    subbyte.export(FILES / "ternary", tmp_path / "again.onnx")
    with np.load(FILES / "ternary.npz") as stored:
        np.testing.assert_array_equal(run_onnx(tmp_path / "again.onnx", stored["x"])["logits"], stored["logits"])


@needs_x86_64
@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_a_bundle_runs_and_gives_its_golden_outputs(name: str) -> None:
    with np.load(FILES / f"{name}.npz") as stored, subbyte.load(FILES / f"{name}-x86-64.subbyte") as session:
        assert session.check_golden().exact
        assert within_tolerance(session.run(stored["x"]), stored["logits"]).all()
        manifest = session.manifest
        for measured in (lambda: subbyte.bench(session), session.profile):  # the library of 0.1 has no such function
            with pytest.raises(BundleError, match=f"^bundle .*{name}-.*export subbyte_(machine|measure). Build"):
                measured()
    assert sum(row.macs for row in manifest.operators) == MACS[name]
    assert model_energy(manifest).modelled_pj == pytest.approx(ENERGY_PJ[name])


def test_c_sources_of_a_bundle_build_and_give_their_golden_outputs(tmp_path: Path) -> None:
    with open_bundle(FILES / "int4-cortex-m4.subbyte") as bundle:
        for name in bundle.members:
            if name.startswith("source/"):
                (tmp_path / Path(name).name).write_bytes(bundle.read(name))
    files = sorted(path.name for path in tmp_path.glob("*.c") if path.name != "startup.c")  # which is for the board
    command = ["gcc", "-std=c99", "-O2", "-ffp-contract=off", *files, "-o", "example", "-lm"]
    subprocess.run(command, cwd=tmp_path, check=True)
    ran = subprocess.run(["./example"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "golden ok"
