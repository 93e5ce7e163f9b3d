"""Linux lends AMX's tile registers to a process that asks, and may refuse: what then is said, and compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from this_cpu import needs

from subbyte.runtime.bundle import open_bundle
from subbyte.runtime.features import TILE_FEATURES
from subbyte.tvm_kernels.compiler import compile

needs_tiles = needs(TILE_FEATURES)
# With an alternative signal stack too small for the tile registers Linux answers ENOSPC.
REFUSED = """
import ctypes, sys

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

memory = ctypes.create_string_buffer(8192)
stack = Stack(ctypes.addressof(memory), 0, 8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product large enough for tiles: 8-bit codes x int8, as onnxruntime's quantizer writes it."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (128, 64)).astype(np.int8)
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        small (float[64, 128] x) => (float[64, 64] y)
        <float xs = {0.05}, uint8 xz = {128}, float ws = {0.01}, int8 wz = {0}>
        {
          q = QuantizeLinear(x, xs, xz)
          d = DequantizeLinear(q, xs, xz)
          w = DequantizeLinear(weight, ws, wz)
          y = MatMul(d, w)
        }
    """)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    path = tmp_path_factory.mktemp("amx") / "small.subbyte"
    compile(model, path, strict=True)
    return path


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)


@needs_tiles
def test_a_fresh_process_asks_and_runs(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        assert "dot-amx" in [row.kernel for row in opened.manifest.operators]
    done = python(
        f"import numpy as np, subbyte; print(subbyte.load({str(bundle)!r}).run(np.ones((64, 128), 'f4')).shape)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(64, 64)"


@needs_tiles
def test_a_refusal_is_an_error_that_says_what_to_do(bundle: Path) -> None:
    done = python(REFUSED + f"import subbyte\nsubbyte.load({str(bundle)!r})")
    assert done.returncode == 1
    assert "SessionError" in done.stderr
    assert "refuses AMX's tile registers to this process" in done.stderr
    assert "--target host" in done.stderr


@needs_tiles
def test_where_it_is_refused_the_host_is_a_cpu_without_tiles() -> None:
    code = "from subbyte.runtime.features import TILE_FEATURES\nfrom subbyte.tvm_kernels.machines import get_target\n"
    code += "print(len(get_target('host').features & TILE_FEATURES))"
    assert python(code).stdout.strip() == "2"
    assert python(REFUSED + code).stdout.strip() == "0"
