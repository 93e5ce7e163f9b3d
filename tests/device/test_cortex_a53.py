"""cortex-a53: library and bench program run under qemu-aarch64 and give the golden bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from low_bit_models import small_model

from subbyte.runtime.bundle import open_bundle
from subbyte.tvm_kernels.compiler import compile

pytestmark = pytest.mark.device


def read_npy(data: bytes, folder: Path) -> np.ndarray:
    path = folder / "golden.npy"
    path.write_bytes(data)
    return np.load(path)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("resnet8", "int4"), ("resnet8", "binary"), ("ds_cnn", "int8"), ("ds_cnn", "ternary"), ("ds_cnn", "pow2")],
)
def test_the_bench_program_gives_the_golden_bytes(name: str, scheme: str, tmp_path: Path) -> None:
    assert shutil.which("qemu-aarch64"), "apt install qemu-user"
    bundle = tmp_path / "model.subbyte"
    report = compile(small_model(name, scheme), bundle, target="cortex-a53", strict=True)
    assert report.fallbacks == ()
    with open_bundle(bundle) as opened:
        program = tmp_path / "bench"
        program.write_bytes(opened.read("bench"))
        golden = read_npy(opened.read("golden/output_0.npy"), tmp_path)
    program.chmod(0o755)
    options = ["--iterations", "2", "--warmup", "0", "--threads", "2", "--json", "--dump", str(tmp_path)]
    done = subprocess.run(
        ["qemu-aarch64", str(program), *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["golden_exact"] is True
    assert (tmp_path / "output_0.bin").read_bytes() == golden.tobytes()
