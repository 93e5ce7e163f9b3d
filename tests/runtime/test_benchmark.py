"""The benchmark: its figures are of the calls that were made, its warnings have reasons, its JSON the agreed keys."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_bundle import example, npy, tiny_manifest, tiny_members

from subbyte.errors import InputError, SessionError, UsageError
from subbyte.runtime import BenchResult, bench, load, open_bundle, write_bundle
from subbyte.runtime.benchmark import interleave, pinned
from subbyte.runtime.cold_start import measure_cold_start
from subbyte.runtime.energy import Reading
from subbyte.runtime.measurement import LATENCY, MAX_SAMPLES, OPERATORS
from subbyte.runtime.report import print_bench, print_energy_model, print_manifest


class Counter:
    """A meter that moves by one joule from start to stop, with as many ticks as asked."""

    source = "test counter"

    def __init__(self, ticks: int = 1000) -> None:
        self.ticks = ticks

    def start(self) -> None: ...

    def stop(self) -> Reading:
        return Reading(1.0, 2.0, self.ticks, {"all": 1.0})


@pytest.fixture
def result(bundle_path: Path) -> BenchResult:
    return bench(bundle_path, iterations=200, cold=False, meter=Counter())


def test_figures_of_a_bundle(result: BenchResult) -> None:
    latency = result.latency_ms
    assert 0 < latency.min <= latency.p50 <= latency.p90 <= latency.p99
    assert latency.min <= latency.mean
    assert result.throughput_per_s == pytest.approx(1e3 / latency.mean)
    assert (result.iterations, result.threads, result.golden_ok, result.golden_exact) == (200, 1, True, True)
    assert result.warmup >= 20
    assert [row.name for row in result.operators] == ["quantize", "take_signs", "scale", "count"]
    assert sum(row.share for row in result.operators) == pytest.approx(1.0)
    scale = result.operators[2]
    assert scale.gmac_per_s == pytest.approx(48 / scale.ns)
    assert result.operators[0].gmac_per_s is None


def test_a_result_prints_as_tables(result: BenchResult) -> None:
    lines = str(result).splitlines()
    assert lines[0].startswith(f"{result.name} for {result.target}, 1 thread")
    assert any(line.split() == ["min", "mean", "p50", "p90", "p99", "std", "calls/s"] for line in lines)
    assert any("energy, modelled (not measured" in line for line in lines)


def test_json_has_the_keys_of_the_c_program(result: BenchResult) -> None:
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert {"min", "mean", "p50", "p90", "p99"} <= set(plain["latency_ms"])
    assert {"name", "target", "threads", "iterations", "warmup", "golden_ok", "golden_exact"} <= set(plain)
    assert (plain["golden_differing"], plain["golden_max_error"]) == (0, 0.0)
    assert all({"name", "ns"} <= set(row) for row in plain["operators"])
    assert plain["machine"]["python"].count(".") == 2


def test_measured_and_modelled_energy_stand_apart(result: BenchResult) -> None:
    plain = result.to_json()
    measured, modelled = plain["energy_measured"], plain["energy_modelled"]
    assert (measured["provenance"], modelled["provenance"]) == ("measured", "modelled")
    assert measured["joules_gross"] == 1.0
    assert measured["joules_net"] == 0.0
    assert not {key for key in measured if "modelled" in key}
    assert not {key for key in modelled if "joules" in key}


def test_without_a_counter_the_reason_stands_there(bundle_path: Path) -> None:
    found = bench(bundle_path, iterations=5, cold=False, meter=Counter(ticks=3))
    assert found.energy_measured is None
    assert "at least 100 are needed" in found.energy_measured_missing
    assert found.energy_modelled.modelled_pj > 0


def test_an_open_session_with_inputs(bundle_path: Path) -> None:
    with load(bundle_path, threads=2) as session:
        found = bench(session, iterations=20, inputs=example(), cold=False, energy=False, profile=False)
        assert (found.threads, found.operators, found.cold_start) == (2, (), None)
        with pytest.raises(UsageError, match="has 2 threads, asked for 1"):
            bench(session, threads=1)
        with pytest.raises(InputError, match="expected float32"):
            bench(session, iterations=1, inputs=example().astype(np.float64))
        session.run(example())


def test_wrong_golden_outputs_lead_the_warnings(tmp_path: Path, library: bytes) -> None:
    members = {**tiny_members(library), "golden/output_0.npy": npy(np.zeros((1, 3, 4, 4), np.float32))}
    path = write_bundle(tmp_path / "b.subbyte", tiny_manifest(), members)
    found = bench(path, iterations=5, cold=False, energy=False)
    assert found.golden_ok is False
    assert found.warnings[0].startswith("the outputs are not the golden ones")


@pytest.mark.parametrize(
    "settings",
    [{"iterations": 0}, {"seconds": 0}, {"seconds": None}, {"seconds": -1.0}, {"warmup": -1}, {"threads": 0}],
)
def test_wrong_settings(bundle_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        bench(bundle_path, **settings)


def test_the_number_of_calls(bundle_path: Path) -> None:
    with load(bundle_path, threads=1) as session:
        found = session.measure(example(), 0, iterations=7, warmup=5)
        assert (found["warmup"], found["iterations"], found["operators"]) == (5, 7, [])
        found = session.measure(example(), LATENCY, seconds=0.01)
        assert found["iterations"] > 1
        assert found["latency_ms"]["mean"] * found["iterations"] <= 1e-6 * (found["end_ns"] - found["start_ns"])
        assert found["end_ns"] - found["start_ns"] >= 10_000_000


@pytest.mark.parametrize("what", [0, LATENCY, OPERATORS, LATENCY | OPERATORS])
def test_a_signal_handler_ends_a_measurement(bundle_path: Path, what: int) -> None:
    def handler(*_: object) -> None:
        raise RuntimeError("enough")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with load(bundle_path, threads=1) as session:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(RuntimeError, match="enough"):
                session.measure(example(), what, seconds=600.0, iterations=MAX_SAMPLES if what == OPERATORS else 0)
            session.run(example())
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_session_that_is_closed_while_it_is_measured_ends_with_its_figures(bundle_path: Path) -> None:
    session = load(bundle_path, threads=1)
    before = signal.signal(signal.SIGALRM, lambda *_: session.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        found = session.measure(example(), LATENCY, seconds=0.3)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found["end_ns"] - found["start_ns"] >= 300_000_000
    assert session.closed
    with pytest.raises(SessionError, match="closed"):
        session.measure(example(), LATENCY, seconds=0.1)


def test_a_measurement_within_a_run_has_memory_of_its_own(bundle_path: Path) -> None:
    found: list[int] = []
    inner = example(2)
    with load(bundle_path, threads=1) as session:
        want = session.run(example())
        outputs = session.watch(
            example(), lambda *_: found.append(session.measure(inner, 0, iterations=3)["iterations"])
        )
    assert found == [3] * 4
    for info, array in zip(session.outputs, outputs, strict=True):
        assert np.array_equal(want[info.name], array)


def test_interleaved_calls_take_turns() -> None:
    order: list[str] = []
    found = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.005)
    rounds = len(found["a"])
    assert rounds == len(found["b"]) > 0
    assert order[-2 * rounds :] == ["a", "b"] * rounds


def test_a_longer_turn_starts_with_a_call_that_is_not_timed() -> None:
    order: list[str] = []
    found = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.005, turn=3)
    rounds = len(found["a"]) // 3
    assert len(found["a"]) == len(found["b"]) == 3 * rounds > 0
    assert order[-8 * rounds :] == ["a"] * 4 + ["b"] * 4 + (["a"] * 4 + ["b"] * 4) * (rounds - 1)
    with pytest.raises(UsageError, match="expected at least 1"):
        interleave({"a": lambda: None}, 0.005, turn=0)


def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cpus:
        assert os.sched_getaffinity(0) == set(cpus)
        assert len(cpus) == 1
    assert os.sched_getaffinity(0) == before
    with pinned(0) as cpus, pinned(10_000) as more:
        assert (cpus, more, os.sched_getaffinity(0)) == ((), (), before)


# ---- cold start and imports ----


def test_cold_start(bundle_path: Path) -> None:
    found = measure_cold_start(bundle_path, runs=1)
    parts = found.python_ms + found.import_ms + found.load_ms + found.first_result_ms
    assert 0 < parts <= found.total_ms
    assert found.resident_bytes is not None
    assert 10 << 20 < found.resident_bytes < 60 << 20


def test_cold_start_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="there is no bundle"):
        measure_cold_start(tmp_path / "none.subbyte", runs=1)


def test_running_imports_nothing_heavy(bundle_path: Path) -> None:
    """A device has NumPy, click and rich; a run needs the first alone. What NumPy itself imports is its own affair."""
    code = """
import sys, numpy
before = set(sys.modules)
from subbyte.runtime import load
with load(sys.argv[1], threads=1) as session:
    session.run(numpy.zeros((1, 3, 4, 4), numpy.float32))
heavy = {"torch", "onnx", "onnxruntime", "tvm", "lightning", "rich", "click", "zeus", "zipfile", "subprocess"}
print(sorted(heavy & (set(sys.modules) - before)))
print(sorted(name for name in sys.modules if name.startswith("subbyte")))
"""
    done = subprocess.run([sys.executable, "-c", code, str(bundle_path)], capture_output=True, text=True, check=True)
    heavy, ours = done.stdout.splitlines()
    assert heavy == "[]"
    assert "benchmark" not in ours
    assert "energy" not in ours


def test_importing_the_package_imports_nothing() -> None:
    code = "import sys, subbyte.runtime as r; print('numpy' in sys.modules, dir(r)); r.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("False ['BenchResult', 'Bundle', 'Session', 'bench'")
    assert "AttributeError: module 'subbyte.runtime' has no attribute 'nothing'" in done.stderr


# ---- reports ----


def test_reports_print(result: BenchResult, bundle_path: Path) -> None:
    file = io.StringIO()
    console = Console(file=file, width=200)
    print_bench(result, console)
    print_energy_model(result, console)
    with open_bundle(bundle_path) as bundle:
        print_manifest(bundle, console)
    text = file.getvalue()
    for words in (
        "p99",
        "take_signs",
        "golden outputs: equal",
        "energy, measured (test counter",
        "energy, modelled (not measured;",
        "int8 multiply 0.2",
        "One memory model for every operator",
        "input x: float32 [1, 3, 4, 4]",
        "uint8 x ternary",
        "weights.bin",
    ):
        assert words in text


def test_reports_do_not_obey_the_bundle(tmp_path: Path, library: bytes) -> None:
    """Names from a file are text: no markup, no terminal escapes."""
    manifest = tiny_manifest()
    manifest["name"] = "[bold red]\x1b[2Jevil[/] [/nothing]"
    path = write_bundle(tmp_path / "b.subbyte", manifest, tiny_members(library))
    file = io.StringIO()
    with open_bundle(path) as bundle:
        print_manifest(bundle, Console(file=file, width=200))
    assert "[bold red]?[2Jevil[/] [/nothing]" in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()
