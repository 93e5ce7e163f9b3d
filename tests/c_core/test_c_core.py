"""The C core is warning-free C99 and passes its own tests, also under the sanitizers and with Zig's compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import subbyte.runtime
from subbyte.runtime.features import features_of
from subbyte.runtime.host import machine
from subbyte.tvm_kernels.emit import bench_program, core
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.toolchain import zig_command

HERE = Path(__file__).parent
CORE = Path(subbyte.runtime.__file__).parent / "c"
HOSTED = [CORE / name for name in core.CORE]
MEASURE = [CORE / name for name in core.MEASURE]
BENCH = [CORE / name for name in bench_program.BENCH]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wcast-align"]
STRICT = ["-std=c99", *WARNINGS, f"-I{CORE}"]


def call(command: list[str | Path], folder: Path) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "sanitizer", [[], ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], ["-fsanitize=thread"]]
)
def test_core_passes_under(sanitizer: list[str], tmp_path: Path) -> None:
    sources = [*(HERE / f"{name}.c" for name in ("core_test", "state_test", "tiny_model")), *HOSTED]
    has = host_features()
    lacks = sorted(row.name for row in features_of(machine()) if row.name not in has)
    wanted = {"HAS": " ".join(sorted(has)), "LACKS": " ".join([*lacks[:1], "unheard-of", "dsp"][:2])}
    given = [f'-DSUBBYTE_TEST_{key}="{value}"' for key, value in wanted.items()]
    call(["gcc", "-g", "-O1", *given, *STRICT, *sanitizer, *sources, "-lpthread", "-o", "core_test"], tmp_path)
    assert call([tmp_path / "core_test"], tmp_path) == "ok\n"


def test_every_file_compiles_without_a_warning_at_the_optimisation_that_bundles_use(tmp_path: Path) -> None:
    call(["gcc", "-O2", *STRICT, "-Wmissing-prototypes", "-c", *HOSTED, *MEASURE, *BENCH], tmp_path)


@pytest.mark.device
def test_zig_finds_nothing_to_warn_about(tmp_path: Path) -> None:
    zig = zig_command()
    assert zig is not None, "pip install ziglang"
    call(
        [*zig, "cc", "-O2", "-fno-sanitize=all", *STRICT, "-Wmissing-prototypes", "-c", *HOSTED, *MEASURE, *BENCH],
        tmp_path,
    )


@pytest.mark.device
@pytest.mark.parametrize("compiler", ["aarch64-linux-gnu-gcc", "riscv64-linux-gnu-gcc", "arm-none-eabi-gcc"])
def test_cross_compilers_find_nothing_to_warn_about(compiler: str, tmp_path: Path) -> None:
    assert shutil.which(compiler), f"apt install {compiler.removesuffix('-gcc')}"
    board = [CORE / "run.c", CORE / "failure.c", CORE / "needs.c", CORE / "state.c"]
    hosted = [*HOSTED, *MEASURE, *BENCH] if "linux" in compiler else board
    call([compiler, "-Os", *STRICT, "-Wmissing-prototypes", "-c", *hosted], tmp_path)
