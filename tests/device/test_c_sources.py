"""C sources under the options that their users have: the same bits, no warnings, and #error where bits would change."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from low_bit_models import small_model
from plan_of_rows import PlanOfRows
from row_cases import CASES
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

import subbyte
from subbyte.tvm_kernels.abi import Wanted, compile_source
from subbyte.tvm_kernels.emit import Emitted, Golden, compile_plan
from subbyte.tvm_kernels.emit.c_source import C_SOURCE
from subbyte.tvm_kernels.emit.source_files import EXAMPLE_FILES, MODEL_FILES
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.toolchain import find_toolchain, zig_command

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wmissing-prototypes", "-Wcast-align"]
CHOSEN = {
    *("convolution, all stores", "depthwise, all stores", "convolution int4 by group", "3 channels int4"),
    *("signs, padded convolution", "elementwise, all stores", "elementwise, out of range", "tokens"),
}
OPTIONS = [
    *("-O0", "-O1 -fwrapv", "-O2", "-O3 -fwrapv", "-Os -fwrapv -funsigned-char", "-O2 -std=gnu99 -march=native"),
    "-O2 -ffp-contract=fast -march=native",
]
FILES = [*MODEL_FILES, *EXAMPLE_FILES]


@cache
def emitted() -> Emitted:
    """Every row for C sources on a few operators, and golden outputs of the reference that no bit may differ from."""
    made = PlanOfRows(get_target("cortex-m4"))
    for case in CASES:
        if case.name in CHOSEN:
            made.add(case)
    names = {call.kernel.split(" for ")[0] for call in made.calls}
    assert names >= {"dsp", "dsp-depthwise", "portable", "elementwise-portable"}
    return compile_plan(made.plan(), made.target, Golden(tuple(made.given), tuple(made.wanted)))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name, data in emitted().members.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "source"


def compiler(name: str) -> list[str]:
    if name == "gcc":
        return ["gcc"]
    zig = zig_command()
    assert zig is not None, "pip install ziglang"
    return [*zig, "cc"]


def call(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


COMPILERS = ["gcc", pytest.param("clang", marks=pytest.mark.device)]


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("options", OPTIONS)
def test_no_option_changes_a_bit_or_warns(name: str, options: str, sources: Path) -> None:
    command = [*compiler(name), "-std=c99", *options.split(), *WARNINGS, *FILES, "-o", "example", "-lm"]
    built = call(command, sources)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    ran = call(["./example"], sources)
    assert ran.stdout.splitlines()[-1] == "golden ok", ran.stdout
    assert ran.stdout.count(" differing 0\n") == ran.stdout.count(" differing ") > 10


MIXED = """
<ir_version: 10, opset_import: ["": 21]> g (float[3,64] x) => (float[3,64] y, float[3,64] z) {
  h = Cast<to = 10>(x)
  t = Mul(h, h) s = Sub(t, h) y = Cast<to = 1>(s)
  d = Cast<to = 11>(x)
  f = Floor(d) r = Sub(d, f) q = Sub(r, d) z = Cast<to = 1>(q)
}
"""


@pytest.mark.parametrize("options", ["-O0", "-O3 -march=native"])
def test_float16_and_float64_are_the_same_numbers_in_c(options: str, tmp_path: Path) -> None:
    """C has no float16: it is rounded to by integer arithmetic."""
    x = np.concatenate([np.linspace(-300, 300, 96), np.geomspace(1e-8, 7e4, 96)]).reshape(3, 64).astype(np.float32)
    model = onnx.parser.parse_model(MIXED)
    subbyte.compile(model, tmp_path / "m.subbyte", target="cortex-m4", golden_inputs=[x], keep=tmp_path)
    command = ["gcc", "-std=c99", *options.split(), *WARNINGS, *FILES, "-o", "example", "-lm"]
    built = call(command, tmp_path / "source")
    assert built.returncode == 0, built.stderr
    ran = call(["./example"], tmp_path / "source")
    assert ran.stdout.splitlines()[-1] == "golden ok", ran.stdout
    assert ran.stdout.count(" differing 0\n") == 2
    with np.errstate(over="ignore", invalid="ignore"):  # 7e4 is infinity
        half = x.astype(np.float16)
        wanted = (half * half - half).astype(np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "golden" / "output_0.npy"), wanted)


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_product_is_fused_with_an_addition(name: str, dtype: str, tmp_path: Path) -> None:
    """Where they stand in one expression, and where the product stands in a variable."""
    n = 1000
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("sums")
        a, b, c = (T.arg(letter, T.buffer((n,), dtype)) for letter in "abc")
        y = T.arg("y", T.buffer((2 * n,), dtype))
        with T.parallel(0, n) as i:
            T.buffer_store(y, a[i] * b[i] + c[i], [i])
            product = T.bind(b[i] * c[i])  # another: clang fuses no product that is needed twice
            T.buffer_store(y, a[i] - product, [n + i])
    code = compile_source([Wanted("sums", builder.get())], get_target("cortex-m4").tvm_target()).code
    (tmp_path / "sums.c").write_bytes(code)
    flags = ["-std=c99", "-O2", "-ffp-contract=fast", "-march=native", "-fPIC", "-shared"]
    built = call([*compiler(name), *flags, *WARNINGS, "sums.c", "-o", "sums.so", "-lm"], tmp_path)
    assert built.returncode == 0, built.stderr
    first, second, third = np.random.default_rng(0).standard_normal((3, n)).astype(dtype)
    out = np.empty(2 * n, dtype)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (first, second, third, out)]
    assert ctypes.CDLL(str(tmp_path / "sums.so")).sums(*pointers, 0, n) == 0
    np.testing.assert_array_equal(out, np.concatenate([first * second + third, first - second * third]))


@pytest.mark.device
@pytest.mark.parametrize("cpu", ["-march=native", "-target aarch64-linux-gnu", "-target riscv64-linux-gnu"])
def test_options_of_clang_that_no_macro_tells_of_change_no_instruction(cpu: str, sources: Path) -> None:
    def assembly(*options: str) -> str:
        made = call([*compiler("clang"), "-std=c99", "-O2", "-g0", *cpu.split(), *options, "-S", "kernels.c"], sources)
        assert made.returncode == 0, made.stderr
        return (sources / "kernels.s").read_text()

    plain = assembly()
    for option in ("-ffp-contract=fast", "-freciprocal-math", "-funsafe-math-optimizations"):
        assert assembly(option) == plain, option


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("option", ["-ffast-math", "-ffinite-math-only"])
def test_options_that_change_bits_stop_the_compiler(name: str, option: str, sources: Path) -> None:
    refused = call([*compiler(name), "-std=c99", option, "-c", "kernels.c", "-o", "kernels.o"], sources)
    assert refused.returncode != 0
    assert "-ffast-math, -Ofast and the options that they imply change bits" in refused.stderr


@pytest.mark.parametrize("option", ["-Ofast", "-funsafe-math-optimizations", "-mfpmath=387"])  # of gcc
def test_options_of_gcc_that_change_bits_stop_it(option: str, sources: Path) -> None:
    refused = call(["gcc", "-std=c99", option, "-c", "kernels.c"], sources)
    assert refused.returncode != 0
    assert "change bits" in refused.stderr or "floats are evaluated in a wider type" in refused.stderr


@pytest.mark.device
def test_the_cross_compiler_finds_nothing_to_warn_about(sources: Path) -> None:
    assert shutil.which("arm-none-eabi-gcc"), "apt install gcc-arm-none-eabi"
    flags = ["-std=c99", "-O2", *find_toolchain(get_target("cortex-m4")).c_flags, *WARNINGS]
    built = call(["arm-none-eabi-gcc", *flags, "-c", *MODEL_FILES, *EXAMPLE_FILES], sources)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""


def test_sources_for_a_target_without_a_board_are_plain_c(tmp_path: Path) -> None:
    """No start-up and no linker script: the Makefile builds a program of this machine, which checks itself."""
    plain = replace(get_target("host"), name="plain-c", emitter=C_SOURCE, features=frozenset(), cpu="")
    subbyte.compile(small_model("ds_cnn", "ternary"), tmp_path / "m.subbyte", target=plain, keep=tmp_path, strict=True)
    folder = tmp_path / "source"
    assert not {"board.h", "startup.c", "link.ld", "memory.ld"} & {path.name for path in folder.iterdir()}
    done = call(["make", "-s", "CC=cc", "run"], folder)
    assert done.returncode == 0, done.stderr
    assert "golden ok" in done.stdout.splitlines()
