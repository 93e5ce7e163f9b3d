"""Emitters: what a hand-made plan becomes, run through ctypes and as programs, equal to NumPy bit for bit."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_plan import Example, call, matmul
from unpacked import unpacked

from subbyte.errors import BundleError, CompileError, RegistrationError, UsageError
from subbyte.runtime import host, manifest, native
from subbyte.runtime.bundle import open_bundle
from subbyte.runtime.program_form import FORMS, ProgramForm
from subbyte.tvm_kernels.compiler import bundle_plan, compile
from subbyte.tvm_kernels.emit import Emitted, Golden, compile_plan
from subbyte.tvm_kernels.emit import emitter as emitters
from subbyte.tvm_kernels.emit.core import core_folder
from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.emit.emitter import Emitter, all_emitters, register_emitter
from subbyte.tvm_kernels.emit.model_c import c_string
from subbyte.tvm_kernels.emit.shared_library import EXPORTS
from subbyte.tvm_kernels.emit.symbols import MAX_ARGUMENTS, symbols
from subbyte.tvm_kernels.machines import all_targets, get_target
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.plan import SPACES, Argument, Plan


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


def test_every_emitter_has_a_target_and_every_form_an_emitter() -> None:
    assert {target.emitter.name for target in all_targets()} == {emitter.name for emitter in all_emitters()}
    assert {emitter.form.word for emitter in all_emitters()} == set(FORMS)
    assert all(FORMS[word].word == word for word in FORMS)


@pytest.mark.parametrize("target", [target.name for target in all_targets() if not target.emitter.makes_archive])
def test_c_sources_have_no_archive(target: str, example: Example, tmp_path: Path) -> None:
    reason = f"'{target}' has no static archive.*Leave out --archive"
    with pytest.raises(UsageError, match=reason):
        compile_plan(example.plan, get_target(target), archive=True)
    with pytest.raises(UsageError, match=reason):  # before the file is read
        compile(tmp_path / "none.onnx", tmp_path / "m.subbyte", target=target, archive=True)


LISTING = ProgramForm("listing", "a listing", members=("calls.txt",), build="read it")


def list_calls(plan: Plan, target: Target, golden: Golden | None = None) -> Emitted:
    lines = "".join(f"{call.name} by {call.kernel}\n" for call in plan.calls)
    return Emitted({"weights.bin": plan.weights, "calls.txt": lines.encode()}, (1,) * len(plan.calls), 0)


@pytest.fixture
def lister(monkeypatch: pytest.MonkeyPatch) -> Emitter:
    """An emitter in a file of its own, and the row of its form."""
    monkeypatch.setattr(emitters, "_rows", dict(emitters._rows))
    monkeypatch.setitem(FORMS, "listing", LISTING)
    return register_emitter(Emitter("lister", "the calls of the plan", LISTING, "c", False, False, list_calls))


def test_an_emitter_is_one_file_and_the_row_of_its_form(lister: Emitter, example: Example, tmp_path: Path) -> None:
    """Its bundle is written, read and refused to run, by what the two say."""
    target = dataclasses.replace(get_target("cortex-m4"), name="paper", emitter=lister)
    report = bundle_plan(example.plan, target, tmp_path / "m.subbyte", Golden(example.inputs, example.outputs))
    assert report.not_replayed == "the bundle holds a listing"
    with open_bundle(tmp_path / "m.subbyte") as bundle:
        assert bundle.manifest.target.form is LISTING
        assert bundle.read("calls.txt") == b"/first by dot\n/second by dot\n/scale by scale-rows\n"
        with pytest.raises(BundleError, match="for 'paper' holds a listing, which must be built first: read it"):
            host.check_target(bundle.manifest.target)
    with pytest.raises(UsageError, match="'paper' has no static archive: its emitter 'lister'"):
        compile_plan(example.plan, target, archive=True)


def test_a_bundle_lacks_no_member_of_its_form(lister: Emitter, example: Example, tmp_path: Path) -> None:
    forgets = dataclasses.replace(lister, emit=lambda plan, *rest: Emitted({"weights.bin": plan.weights}, (1,) * 3, 0))
    target = dataclasses.replace(get_target("cortex-m4"), emitter=forgets)
    with pytest.raises(BundleError, match=r"member 'calls\.txt' is missing from a bundle that holds a listing"):
        bundle_plan(example.plan, target, tmp_path / "m.subbyte")
    assert not (tmp_path / "m.subbyte").exists()


@pytest.mark.parametrize("part", [field.name for field in dataclasses.fields(Emitter)])
def test_an_emitter_without_a_part_is_refused(part: str) -> None:
    with pytest.raises(RegistrationError, match=f"has no {part}; see docs/add-a-target.md"):
        dataclasses.replace(ELF, **{part: None})


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("name", 7, r"its name is 7 \(int\), expected str"),
        ("code_generator", "cuda", "its code_generator is 'cuda' .*, expected 'llvm' or 'c'"),
        ("form", "library", "its form is 'library' .*, expected ProgramForm"),
        ("form", LISTING, "the runtime does not know its form 'listing', expected a row of FORMS"),
        ("asks_cpu", 1, r"its asks_cpu is 1 \(int\), expected bool"),
        ("emit", "elf", "its emit is 'elf' .*, expected a function"),
    ],
)
def test_an_emitter_with_a_wrong_part_is_refused(part: str, value: object, message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        dataclasses.replace(ELF, **{part: value})


def test_an_emitter_is_registered_once() -> None:
    with pytest.raises(RegistrationError, match="emitter 'elf' is registered twice"):
        register_emitter(ELF)
    with pytest.raises(RegistrationError, match="expects an Emitter, got 'elf'"):
        register_emitter("elf")


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
