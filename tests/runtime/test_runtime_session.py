"""Sessions over a real library: right numbers, no copies, strict inputs, and no library but the bundle's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from this_machine import needs_x86_64
from tiny_bundle import build_library, example, npy, reference, tiny_manifest, tiny_members

from subbyte.errors import BundleError, InputError, SessionError, UsageError
from subbyte.runtime import Session, host, load, open_bundle, write_bundle
from subbyte.runtime.manifest import OperatorOutput
from subbyte.runtime.tracing import decode, signs


@pytest.fixture(params=[1, 2, 5])
def session(bundle_path: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    with load(bundle_path, threads=request.param) as made:
        yield made


def test_outputs_equal_the_reference(session: Session) -> None:
    for seed in range(20):
        x = example(seed)
        got, want = session.run(x), reference(x)
        assert isinstance(got, dict)
        assert list(got) == ["y", "count"]
        np.testing.assert_array_equal(got["y"], want["y"])
        np.testing.assert_array_equal(got["count"], want["count"])


def test_array_list_and_dict_are_the_same(session: Session) -> None:
    x = example()
    results = [session.run(given)["y"] for given in (x, [x], (x,), {"x": x})]  # type: ignore[arg-type, index]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_trace_gives_onnx_values(session: Session) -> None:
    x = example(3)
    found, want = session.trace(x), reference(x)
    assert list(found) == ["codes", "signs", "y", "count"]
    for name, value in found.items():
        assert value.dtype == (np.float32 if name == "y" else np.int32)
        np.testing.assert_array_equal(value, want[name])


def test_profile_names_every_operator(session: Session) -> None:
    rows = session.profile(example(), iterations=7)
    assert [row.name for row in rows] == ["quantize", "take_signs", "scale", "count"]
    assert all(0 < row.ns <= row.ns_median for row in rows)


def test_golden(session: Session) -> None:
    report = session.check_golden()
    assert (report.ok, report.exact) == (True, True)
    assert [(row.name, row.elements) for row in report.outputs] == [("y", 48), ("count", 1)]


@pytest.mark.parametrize(("error", "ok"), [(1e-6, True), (1.0, False), (np.nan, False)])
def test_golden_tells_how_far_floats_are_off(tmp_path: Path, library: bytes, error: float, ok: bool) -> None:
    members = tiny_members(library)
    y = reference(example(1))["y"]
    y[0, 1, 2, 3] += np.float32(error)
    path = write_bundle(tmp_path / "b.subbyte", tiny_manifest(), {**members, "golden/output_0.npy": npy(y)})
    with load(path, threads=1) as session:
        report = session.check_golden()
    assert report.ok is ok
    assert not report.exact
    assert report.outputs[0].differing == 1


def test_golden_integers_must_be_equal(tmp_path: Path, library: bytes) -> None:
    count = reference(example(1))["count"] + 1
    members = {**tiny_members(library), "golden/output_1.npy": npy(count.astype(np.int32))}
    with load(write_bundle(tmp_path / "b.subbyte", tiny_manifest(), members), threads=1) as session:
        assert not session.check_golden().ok


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", npy(np.zeros((9, 9))), npy(np.array([{}], object)), b"PK\x03\x04"])
def test_golden_that_is_no_array(tmp_path: Path, library: bytes, data: bytes) -> None:
    members = {**tiny_members(library), "golden/input_0.npy": data}
    with (
        load(write_bundle(tmp_path / "b.subbyte", tiny_manifest(), members), threads=1) as session,
        pytest.raises(BundleError, match=r"^bundle '.*b\.subbyte': member 'golden/input_0\.npy' is "),
    ):
        session.check_golden()


def test_a_bundle_without_golden_outputs(tmp_path: Path, library: bytes) -> None:
    members = {name: data for name, data in tiny_members(library).items() if "golden" not in name}
    path = write_bundle(tmp_path / "b.subbyte", tiny_manifest(), members)
    with (
        load(path, threads=1) as session,
        pytest.raises(BundleError, match=r"^bundle '.*': there is no member 'golden"),
    ):
        session.check_golden()


# ---- copies ----


def test_run_into_writes_into_the_callers_memory(session: Session) -> None:
    x, outputs = example(4), session.empty_outputs()
    addresses = [array.ctypes.data for array in outputs]
    session.run_into(x, outputs)
    np.testing.assert_array_equal(outputs[0], reference(x)["y"])
    assert [array.ctypes.data for array in outputs] == addresses
    session.run_into({"x": -x}, {"count": outputs[1], "y": outputs[0]})
    np.testing.assert_array_equal(outputs[0], reference(-x)["y"])


def test_bind_reads_its_input_anew_at_every_call(session: Session) -> None:
    x, outputs = example(4), session.empty_outputs()
    call = session.bind(x, outputs)
    call()
    x *= -1
    call()
    np.testing.assert_array_equal(outputs[0], reference(x)["y"])


def test_odd_layouts_are_copied_and_right(session: Session) -> None:
    x = example(5)
    fortran = np.asfortranarray(x)
    strided = np.repeat(x, 2, axis=3)[..., ::2]
    raw = bytearray(x.nbytes + 1)
    misaligned = np.frombuffer(raw, np.uint8)[1:].view(np.float32).reshape(x.shape)
    misaligned[...] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    for odd in (fortran, strided, misaligned, read_only):
        np.testing.assert_array_equal(session.run(odd)["y"], reference(x)["y"])  # type: ignore[index]


# ---- wrong inputs ----


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (np.zeros((1, 3, 4, 4)), r"'x' is float64 \[1, 3, 4, 4\], expected float32 .*astype\(np\.float32\)"),
        (np.zeros((1, 3, 4, 4), ">f4"), "'x' is >f4"),
        (np.zeros((3, 4, 4), np.float32), r"add the batch axis with x\[None\]"),
        (np.zeros((2, 3, 4, 4), np.float32), r"\[2, 3, 4, 4\], expected float32 \[1, 3, 4, 4\]"),
        (np.zeros((1, 3, 4, 0), np.float32), r"\[1, 3, 4, 0\]"),
        (np.float32(1), r"float32 \[\]"),
        ("text", "<U4"),
        (None, "object"),
        ([], "got 0 inputs, expected 1"),
        ([np.zeros(1), np.zeros(1)], "got 2 inputs, expected 1"),
        ({}, "input 'x' is missing"),
        ({"X": np.zeros(1)}, r"no input 'X'\. Did you mean 'x'|no input 'X'"),
        ({"x": [[1.0], [1.0, 2.0]]}, "not an array"),
        (np.full((1, 3, 4, 4), np.nan, np.float32), r"holds nan at \[0, 0, 0, 0\]"),
        (np.where(np.arange(48).reshape(1, 3, 4, 4) == 47, -np.inf, 0).astype(np.float32), r"-inf at \[0, 2, 3, 3\]"),
    ],
    ids=lambda value: str(value)[:20].replace("\n", ""),
)
def test_wrong_inputs_are_input_errors(bundle_path: Path, given: Any, match: str) -> None:
    with load(bundle_path, threads=1) as session, pytest.raises(InputError, match=match):
        session.run(given)


def test_finite_inputs_whose_sum_overflows_pass(session: Session) -> None:
    session.run(np.full((1, 3, 4, 4), np.finfo(np.float32).max))


def test_not_finite_is_allowed_when_told(session: Session) -> None:
    session.run(np.full((1, 3, 4, 4), np.inf, np.float32), check_finite=False)


def test_wrong_outputs_are_input_errors(session: Session) -> None:
    x, (y, count) = example(), session.empty_outputs()
    locked = y.copy()
    locked.flags.writeable = False
    cases: list[tuple[Any, str]] = [
        ([y], "got 1 outputs, expected 2"),
        ([y.astype(np.float64), count], "output 'y' is float64"),
        ([y[..., :2], count], "output 'y' is float32"),
        ([np.asfortranarray(y), count], "contiguous"),
        ([locked, count], "writeable"),
        ([x, count], "overlaps"),
        ([y, y.reshape(-1)[:1].view(np.int32)], "overlaps"),
        ([y.tolist(), count], "NumPy arrays"),
        (y, "2 outputs"),
    ]
    for outputs, match in cases:
        with pytest.raises(InputError, match=match):
            session.run_into(x, outputs)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hnp.arrays(np.float32, (1, 3, 4, 4), elements=st.floats(width=32, allow_nan=True)))
def test_any_floats_are_right_or_refused(bundle_path: Path, x: np.ndarray) -> None:
    with load(bundle_path, threads=1) as session:
        if not np.isfinite(x).all():
            with pytest.raises(InputError, match="check_finite"):
                session.run(x)
        elif not (x == 1234).any():
            with np.errstate(over="ignore"):
                want = reference(x)
            np.testing.assert_array_equal(session.run(x)["y"], want["y"])  # type: ignore[index]


def test_a_kernel_that_fails_is_a_session_error(session: Session) -> None:
    x = example()
    x[0, 1, 2, 3] = 1234
    with pytest.raises(SessionError, match=r"running 'tiny' failed: operator 'quantize': a kernel failed \(status 4\)"):
        session.run(x)
    np.testing.assert_array_equal(session.run(-x)["y"], reference(-x)["y"])  # type: ignore[index]


@pytest.mark.parametrize("threads", [0, -1, 257, 1.5, True, "2"])
def test_wrong_threads(bundle_path: Path, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads"):
        load(bundle_path, threads=threads)


# ---- the library ----


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: b"not a library" * 10, "not an ELF library"),
        (lambda data: data[:18] + b"\xb7\x00" + data[20:], "for machine 183"),
        (lambda data: data[:16] + b"\x02\x00" + data[18:], "ELF type 2"),
        (lambda data: data[:64], "cannot be loaded here"),
        (
            lambda data: data.replace(b"subbyte_session_arena\0", b"subbyte_session_arenb\0"),
            "does not export subbyte_session_arena",
        ),
    ],
    ids=["text", "other machine", "a program", "cut", "no symbol"],
)
def test_a_library_that_is_none(tmp_path: Path, library: bytes, change: Any, match: str) -> None:
    path = write_bundle(tmp_path / "b.subbyte", tiny_manifest(), tiny_members(change(library)))
    with pytest.raises(BundleError, match=rf"^bundle '{path}': (?!bundle).*{match}"):
        load(path, threads=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "other"), ("shape", [1, 3, 16]), ("dtype", "int32")],
)
def test_a_library_of_another_model(tmp_path: Path, library: bytes, field: str, value: Any) -> None:
    manifest = tiny_manifest()
    manifest["inputs"][0][field] = value
    path = write_bundle(tmp_path / "b.subbyte", manifest, tiny_members(library))
    with pytest.raises(BundleError, match=r"not the one that manifest\.json describes: input 0"):
        load(path, threads=1)


def test_an_open_bundle_is_not_needed_for_a_session(bundle_path: Path) -> None:
    with open_bundle(bundle_path):
        pass
    with load(bundle_path) as session:
        assert session.threads >= 1


@needs_x86_64  # elsewhere the kernel is asked before the library is loaded
def test_without_cpuinfo_the_library_asks_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has = host.cpu_features()
    lacking = [name for name in ("amxint8", "avxvnni", "avx512vbmi2", "gfni", "avx512f", "avx2") if name not in has]
    monkeypatch.setattr(host, "cpu_features", lambda _: frozenset())
    for wanted, lacks in ((["sse42"], []), (["sse42", *lacking[:2]], lacking[:2])):
        library = build_library(tmp_path, f'-DTINY_FEATURES="{" ".join(wanted)}"')
        path = write_bundle(tmp_path / "b.subbyte", tiny_manifest(), tiny_members(library))
        if not lacks:
            with load(path, threads=1) as session:
                np.testing.assert_array_equal(session.run(example())["y"], reference(example())["y"])  # type: ignore[index]
            continue
        with pytest.raises(SessionError, match=f"this CPU lacks {' '.join(lacks)}. Compile .*--target host"):
            load(path, threads=1)


def test_threads_that_cannot_be_started(bundle_path: Path) -> None:
    code = """
import resource, sys
from subbyte.errors import SessionError
from subbyte.runtime import load
load(sys.argv[1], threads=1).close()
resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0]) * 4096 + (64 << 20),) * 2)
try:
    load(sys.argv[1], threads=200)
except SessionError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "with 200 threads failed" in done.stdout
    assert "load with fewer threads (status 3)" in done.stdout


def test_loading_from_a_file_where_there_is_no_memfd(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with load(bundle_path, threads=2) as session:
        np.testing.assert_array_equal(session.run(example())["y"], reference(example())["y"])  # type: ignore[index]


# ---- decoding ----


@given(st.integers(1, 100), st.integers(1, 4), st.randoms(use_true_random=False))
def test_signs_unpack(channels: int, rows: int, random: Any) -> None:
    want = np.array([[random.choice((-1, 1)) for _ in range(channels)] for _ in range(rows)], np.int32)
    bits = np.zeros((rows, -(-channels // 32) * 32), np.uint8)
    bits[:, :channels] = want > 0
    words = np.packbits(bits, axis=-1, bitorder="little").view("<u4").astype(np.uint32)
    np.testing.assert_array_equal(signs(words, channels), want)


def test_channels_last_of_any_rank() -> None:
    def value(shape: tuple[int, ...]) -> np.ndarray:
        row = OperatorOutput("t", "float", "float32", 0, shape, "NHWC", shape[-1], "arena", 0, 0)
        return decode(row, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))

    assert value((2, 5, 7, 3)).shape == (2, 3, 5, 7)
    assert value((2, 5, 3)).shape == (2, 3, 5)
    assert value((2, 3)).shape == (2, 3)
