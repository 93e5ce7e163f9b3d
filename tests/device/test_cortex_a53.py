"""cortex-a53: library and bench program run under qemu-aarch64 and give the golden bytes."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from emulators import emulate_linux, member_of
from low_bit_models import small_model

from subbyte.runtime.bundle import open_bundle
from subbyte.runtime.energy_model import model_energy
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.machines import get_target

pytestmark = pytest.mark.device


def test_a_cpu_without_the_features_of_the_target_is_refused(tmp_path: Path) -> None:
    newer = dataclasses.replace(get_target("cortex-a53"), name="newer", features=frozenset({"neon", "dotprod", "i8mm"}))
    compile(small_model("resnet8", "ternary"), tmp_path / "model.subbyte", target=newer)
    program = member_of(tmp_path / "model.subbyte", "bench")
    for cpu, status in (("cortex-a53", 1), ("max", 0)):
        done = emulate_linux("aarch64", program, "--iterations", "1", "--warmup", "0", cpu=cpu)
        assert done.returncode == status, done.stderr
        refused = done.stderr.startswith("error: this CPU lacks: dotprod, i8mm, which target 'newer' has.")
        assert refused == (status == 1)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("resnet8", "int4"), ("ds_cnn", "ternary")],
)
def test_the_bench_program_reports_what_the_compiler_chose(name: str, scheme: str, tmp_path: Path) -> None:
    bundle = tmp_path / "model.subbyte"
    report = compile(small_model(name, scheme), bundle, target="cortex-a53", strict=True)
    assert report.fallbacks == ()
    with open_bundle(bundle) as opened:
        modelled = model_energy(opened.manifest).to_json()
        golden = np.load(io.BytesIO(opened.read("golden/output_0.npy")))
    options = ["--iterations", "2", "--warmup", "0", "--threads", "2", "--json", "--dump", str(tmp_path)]
    done = emulate_linux("aarch64", member_of(bundle, "bench"), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["golden_exact"] is True
    chosen = [(row.name, row.kernel) for row in report.rows]
    assert [(row["name"], row["kernel"]) for row in found["operators"]] == chosen
    assert found["energy_modelled"] == json.loads(json.dumps(modelled))
    assert found["machine"]["architecture"] == "aarch64"
    assert (tmp_path / "output_0.bin").read_bytes() == golden.tobytes()
