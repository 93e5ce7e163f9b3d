"""Emitters: what a hand-made plan becomes, run through ctypes and as programs, equal to NumPy bit for bit."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hand_plan import Example, call, matmul
from unpacked import unpacked

from subbyte.errors import CompileError, UsageError
from subbyte.runtime import manifest, native
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.emit import Emitted, Golden, compile_plan
from subbyte.tvm_kernels.emit.core import core_folder
from subbyte.tvm_kernels.emit.elf import EXPORTS
from subbyte.tvm_kernels.emit.emitters import EMITTERS
from subbyte.tvm_kernels.emit.model_c import c_string
from subbyte.tvm_kernels.emit.symbols import MAX_ARGUMENTS, symbols
from subbyte.tvm_kernels.machines import all_targets, get_target
from subbyte.tvm_kernels.machines.target import Emitter
from subbyte.tvm_kernels.plan import SPACES, Argument


@pytest.fixture(scope="module")
def example() -> Example:
    return Example()


@pytest.fixture(scope="module")
def emitted(example: Example) -> Emitted:
    return compile_plan(example.plan, get_target("host"), Golden(example.inputs, example.outputs))


def run_session(library: ctypes.CDLL, weights: bytes, inputs: Any, outputs: Any, threads: int) -> None:
    library.subbyte_get_model.restype = ctypes.c_void_p
    model = ctypes.c_void_p(library.subbyte_get_model())
    block = np.zeros(len(weights) + 64, np.uint8)
    start = -block.ctypes.data % 64
    block[start : start + len(weights)] = np.frombuffer(weights, np.uint8)
    session = ctypes.c_void_p()
    place = ctypes.c_void_p(block.ctypes.data + start)
    status = library.subbyte_session_create(
        model, place, ctypes.c_size_t(len(weights)), ctypes.c_int32(threads), ctypes.byref(session)
    )
    assert status == 0
    given = (ctypes.c_void_p * len(inputs))(*(a.ctypes.data for a in inputs))
    wanted = (ctypes.c_void_p * len(outputs))(*(a.ctypes.data for a in outputs))
    for _ in range(10):  # long enough that each operator has run alone and shared
        for array in outputs:
            array.fill(0)
        assert library.subbyte_session_run(session, given, wanted, None, None) == 0
    library.subbyte_session_destroy.argtypes = [ctypes.c_void_p]
    library.subbyte_session_destroy(session)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_library_gives_the_bits_of_numpy(example: Example, emitted: Emitted, threads: int, tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(emitted.members["library.so"])
    outputs = [np.empty_like(array) for array in example.outputs]
    run_session(ctypes.CDLL(str(path)), emitted.members["weights.bin"], example.inputs, outputs, threads)
    for got, want in zip(outputs, example.outputs, strict=True):
        np.testing.assert_array_equal(got, want)


def test_tiles_and_workspace_are_known_after_code_generation(example: Example, emitted: Emitted) -> None:
    assert emitted.tiles == (7, 7, 1)
    assert emitted.workspace_bytes > example.plan.workspace_bytes  # the scratch of the last kernel is behind it


def test_python_repeats_the_header_as_it_is() -> None:
    """Exported functions, memory spaces in order, the version, and the limit of arguments."""
    header = (core_folder() / "subbyte.h").read_text()
    assert set(re.findall(r"^SUBBYTE_API .*?(subbyte_\w+)\(", header, re.MULTILINE)) == set(EXPORTS)
    spaces = header[header.index("SUBBYTE_ARENA = 0") :].split("}", 1)[0]
    listed = [(name.lower(), int(number)) for name, number in re.findall(r"SUBBYTE_(\w+) = (\d+)", spaces)]
    assert listed == [(name, index) for index, name in enumerate(SPACES)]
    assert tuple(SPACES) == manifest.SPACES
    constants = dict(re.findall(r"^#define SUBBYTE_(\w+) (\d+)", header, re.MULTILINE))
    assert (int(constants["ABI"]), int(constants["MAX_ARGUMENTS"])) == (native.ABI, MAX_ARGUMENTS)


def test_targets_and_the_manifest_know_the_emitters() -> None:
    assert EMITTERS.keys() == set(get_args(Emitter)) == {target.emitter for target in all_targets()}
    assert EMITTERS.keys() <= set(manifest.EMITTERS)


@pytest.mark.parametrize("target", [target.name for target in all_targets() if target.emitter == "source"])
def test_c_sources_have_no_archive(target: str, example: Example, tmp_path: Path) -> None:
    reason = f"'{target}' has no static archive.*Leave out --archive"
    with pytest.raises(UsageError, match=reason):
        compile_plan(example.plan, get_target(target), archive=True)
    with pytest.raises(UsageError, match=reason):  # before the file is read
        compile(tmp_path / "none.onnx", tmp_path / "m.subbyte", target=target, archive=True)


def test_the_library_exports_only_the_header(emitted: Emitted, tmp_path: Path) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(emitted.members["library.so"])
    listed = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in listed.splitlines()} == set(EXPORTS)
    needed = subprocess.run(["readelf", "-dlW", path], capture_output=True, text=True, check=True).stdout
    libraries = [line.split("[")[1].rstrip("]") for line in needed.splitlines() if "(NEEDED)" in line]
    assert set(libraries) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    stack = next(line for line in needed.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack


def test_equal_kernels_are_compiled_once(example: Example) -> None:
    made = symbols(example.plan)
    assert made.of_call == (0, 0, 1)
    assert all(wanted.distinct for wanted in made.wanted)


def test_arguments_that_overlap_are_not_promised_to_be_distinct(example: Example) -> None:
    second = example.plan.calls[1]
    for offset in (64, 0, 64 + 276):  # equal, reaching into the result, beginning in its last bytes
        over = dataclasses.replace(
            second, arguments=(Argument("arena", offset), second.arguments[1], Argument("arena", 64))
        )
        assert not symbols(dataclasses.replace(example.plan, calls=(over,))).wanted[0].distinct
    apart = dataclasses.replace(second, arguments=(Argument("arena", 384), *second.arguments[1:]))
    assert symbols(dataclasses.replace(example.plan, calls=(apart,))).wanted[0].distinct


def test_a_call_with_too_few_arguments_is_refused(example: Example) -> None:
    short = call("/short dot", matmul(2, 3, 4), (Argument("input", 0),))
    with pytest.raises(CompileError, match=r"'/short'.*takes 3 arguments, the plan gives 1"):
        compile_plan(dataclasses.replace(example.plan, calls=(short,)), get_target("host"))


def bench(emitted: Emitted, folder: Path, *options: str) -> tuple[int, str]:
    program = unpacked(emitted.members, folder)
    done = subprocess.run([program, *options], capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout


def test_bench_is_static_and_reports_what_python_does(example: Example, emitted: Emitted, tmp_path: Path) -> None:
    status, text = bench(emitted, tmp_path, "--iterations", "7", "--threads", "2", "--json")
    assert status == 0
    report = json.loads(text)
    assert report["name"] == example.plan.name
    assert report["iterations"] == 7
    assert report["golden_ok"] is True
    assert report["golden_exact"] is True
    assert report["latency_ms"].keys() == {"min", "mean", "p50", "p90", "p99", "std"}
    assert [row["name"] for row in report["operators"]] == ["/first", "/second", "/scale"]
    kind = subprocess.run(["readelf", "-lW", tmp_path / "bench"], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in kind


def test_bench_fails_when_a_golden_output_differs(example: Example, tmp_path: Path) -> None:
    scaled = example.outputs[0].copy()
    scaled[3, 4] = np.nextafter(scaled[3, 4], np.float32(np.inf))
    exact = Golden(example.inputs, (scaled, example.outputs[1]))
    status, text = bench(compile_plan(example.plan, get_target("host"), exact), tmp_path, "--iterations", "5", "--json")
    assert status == 1
    assert json.loads(text)["golden_differing"] == 1
    near = dataclasses.replace(exact, relative=1e-5)
    status, text = bench(compile_plan(example.plan, get_target("host"), near), tmp_path, "--iterations", "5", "--json")
    assert status == 0
    assert json.loads(text)["golden_exact"] is False


def test_bench_refuses_options_it_does_not_know(emitted: Emitted, tmp_path: Path) -> None:
    assert bench(emitted, tmp_path, "--iterations", "none")[0] == 2
    assert bench(emitted, tmp_path, "--speed", "9")[0] == 2


def test_sources_run_on_this_machine_too(example: Example, tmp_path: Path) -> None:
    golden = Golden(example.inputs, example.outputs)
    made = compile_plan(example.plan, get_target("cortex-m4"), golden)
    assert made.tiles == (7, 7, 1)
    for name, data in made.members.items():
        (tmp_path / Path(name).name).write_bytes(data)
    files = ["kernels.c", "model.c", "weights.c", "run.c", "failure.c", "needs.c", "golden.c", "example.c"]
    flags = ["-std=c99", "-O1", "-g", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wno-unused"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["gcc", *flags, *sanitize, *files, "-o", "example", "-lm"], cwd=tmp_path, check=True, timeout=600)
    done = subprocess.run([tmp_path / "example"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    assert "output 0 differing 0" in done.stdout
    assert "output 1 differing 0" in done.stdout
    assert done.stdout.endswith("golden ok\n")


def test_names_survive_as_c_strings() -> None:
    assert c_string('a"b\\c?') == '"a\\042b\\134c\\077"'
    assert c_string("é\n") == '"\\303\\251\\012"'
