"""x86-64 CPUs that lack what a model was compiled for: the missing features are named, no illegal instruction runs."""

from __future__ import annotations

import json
import subprocess
from itertools import product
from pathlib import Path

import pytest
from emulators import emulate_linux, member_of
from low_bit_models import small_model
from this_machine import skip_for_lack_of

from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.emit.core import core_folder
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.toolchain import find_static_toolchain

pytestmark = pytest.mark.device

SCHEMES = ("int8", "int4", "ternary", "pow2", "binary")
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
# The library as a C user has it, who links library.a. Zeros will do for weights and inputs.
USER = """
#include <stdio.h>
#include <stdlib.h>
#include "subbyte.h"
static void *zeros(size_t bytes) {
  char *memory = (char *)calloc(1, bytes + 64);
  return memory + (64 - (uintptr_t)memory % 64) % 64;
}
int main(void) {
  const subbyte_model *model = subbyte_get_model();
  void *weights = zeros(model->weights_bytes), *inputs[16], *outputs[16];
  subbyte_buffers buffers = {weights, zeros(model->arena_bytes), zeros(model->workspace_bytes),
                             (const void *const *)inputs, outputs};
  subbyte_session *session;
  char names[256];
  int created = (int)subbyte_session_create(model, weights, model->weights_bytes, 1, &session), ran, i;
  for (i = 0; i < model->input_count; ++i) inputs[i] = zeros(model->inputs[i].nbytes);
  for (i = 0; i < model->output_count; ++i) outputs[i] = zeros(model->outputs[i].nbytes);
  ran = (int)subbyte_run(model, &buffers, NULL, NULL);
  subbyte_missing_features(model, names, sizeof names);
  printf("%d %d %s\\n", created, ran, names);
  return 0;
}
"""


def made(target: str, member: str, folder: Path, network: str = "resnet8", scheme: str = "ternary") -> Path:
    """That member of a bundle for the target, as a file."""
    archive = member == "library.a"
    compile(small_model(network, scheme), folder / "model.subbyte", target=target, strict=True, archive=archive)
    return member_of(folder / "model.subbyte", member)


@pytest.mark.parametrize(
    ("target", "cpu", "missing"),
    [
        ("x86-64-v2", "Conroe", {"popcnt", "sse41", "sse42"}),
        ("x86-64-v3", "Nehalem", {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
        ("x86-64-v4", "Haswell", AVX512),
    ],
)
def test_the_bench_program_names_what_the_cpu_lacks(target: str, cpu: str, missing: set[str], tmp_path: Path) -> None:
    done = emulate_linux("x86_64", made(target, "bench", tmp_path), "--iterations", "1", cpu=cpu)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    said = done.stderr.splitlines()[-1]  # before it, the emulator may have warnings of its own
    names = said.removeprefix("error: this CPU lacks: ").split(", which target ")[0]
    assert set(names.split(", ")) == missing
    assert f"which target '{target}' has. Compile the model again" in said
    assert emulate_linux("x86_64", tmp_path / "bench", "--help", cpu=cpu).returncode == 0


@pytest.mark.sampled("level, scheme", list(product(("x86-64-v2", "x86-64-v3"), SCHEMES)), 3)
def test_a_transformer_is_within_the_tolerance(level: str, scheme: str, tmp_path: Path) -> None:
    """Its floats between the layers may differ by bits."""
    program = made(level, "bench", tmp_path, "vit_micro", scheme)
    command = [*get_target(level).command(str(program)), "--iterations", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["golden_ok"] is True


@pytest.mark.parametrize(("name", "status"), [("x86-64-v3", 0), ("x86-64-v4", 6)])
def test_a_c_user_of_the_archive_is_refused_too(name: str, status: int, tmp_path: Path) -> None:
    made(name, "library.a", tmp_path)
    (tmp_path / "user.c").write_text(USER)
    toolchain = find_static_toolchain(get_target(name))
    if toolchain.is_zig:
        skip_for_lack_of("a static C library beside that of zig, which library.a is not for")
    flags = [*toolchain.c_flags, *toolchain.static_flags, "-std=c11", f"-I{core_folder()}"]
    toolchain.compile([*flags, "user.c", "library.a", "-lm", "-lpthread", "-o", "user"], tmp_path)
    done = emulate_linux("x86_64", tmp_path / "user", cpu="Haswell")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(status), str(status), *(sorted(AVX512) if status else [])]
