"""What the C core measures: figures as NumPy's of the same samples, warnings with reasons, the passes in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bench_parts import GROUP, V2, planted, program_of_parts, said_by, stat
from this_machine import skip_for_lack_of

from subbyte.runtime.cgroup import cpu_group

LATENCY, OPERATORS = 1, 2
STOPPED = 10


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of_parts(tmp_path_factory.mktemp("measure"))


# ---- figures and warnings of samples ----


def warnings_of(parts: Path, root: Path, samples: Any, preemptions: int = 0) -> list[str]:
    found: list[str] = said_by(parts, "steady", str(root), str(preemptions), *map(repr, samples.tolist()))["warnings"]
    return found


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200))
@settings(deadline=None, max_examples=40)
def test_figures_are_those_of_numpy(parts: Path, samples: list[float]) -> None:
    found = said_by(parts, "steady", "/nowhere", "0", *map(repr, samples))
    p50, p90, p99 = np.percentile(samples, (50, 90, 99))
    want = {"min": min(samples), "mean": np.mean(samples), "p50": p50, "p90": p90, "p99": p99, "std": np.std(samples)}
    assert found["latency_ms"] == pytest.approx(want, rel=1e-9, abs=1e-12 * max(samples))
    assert found["throughput_per_s"] == pytest.approx(1e3 / np.mean(samples))


def test_a_steady_series_has_no_warning(parts: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(1.0, 0.01, 900)
    assert warnings_of(parts, tmp_path, noise * 1e-3) == []


@pytest.mark.parametrize(
    ("change", "preemptions", "match"),
    [
        (
            lambda x: x * np.linspace(1.0, 1.2, len(x)),
            0,
            r"^latency rose by 1\d% from the first third to the last: the processor heats up or slows its clock$",
        ),
        (lambda x: x * np.linspace(1.2, 1.0, len(x)), 0, r"^latency fell by 1\d% .*: warm up for longer$"),
        (
            lambda x: np.where(np.arange(len(x)) % 10 == 0, 2 * x, x),
            500,
            r"^latency varies by 27% \(standard deviation over mean\): other programs took the core 500 times a second",
        ),
        (
            lambda x: np.where(np.arange(len(x)) % 10 == 0, 2 * x, x),
            19,
            r"^latency varies by 27% .*: other load, a changing clock, or interrupts$",
        ),
        (
            lambda x: np.where(np.arange(len(x)) % 80 == 0, 1.7 * x, x),
            0,
            r"^one call in a hundred takes 1\.7 times the median: other load",
        ),
        (lambda x: x[:10], 0, "^only 10 calls were timed"),
    ],
)
def test_an_unsteady_series_says_why(
    parts: Path, change: Callable[[Any], Any], preemptions: int, match: str, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).normal(1.0, 0.005, 900) * 1e-3
    (found,) = warnings_of(parts, tmp_path, change(noise), preemptions)
    assert re.search(match, found)


@pytest.mark.parametrize("factor", [0.5, 0.94, 0.96, 1.04, 1.06, 2.0])
@pytest.mark.parametrize("count", [8, 9, 40])
def test_drift_is_the_ratio_of_the_ends(parts: Path, factor: float, count: int, tmp_path: Path) -> None:
    series = np.ones(count)
    series[-(count // 3) :] = factor
    found = [text for text in warnings_of(parts, tmp_path, series) if "third" in text]
    assert len(found) == (count >= 9 and abs(factor - 1) > 0.05)
    for text in found:
        assert f"latency {'rose' if factor > 1 else 'fell'} by {abs(factor - 1):.0%} " in text


def test_throttling_within_the_window_is_the_first_warning(parts: Path, tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2, f"{GROUP}/cpu.stat": stat(40), "later": stat(52)}
    uneven = np.where(np.arange(99) % 9 == 0, 9.0, 1.0)
    said = warnings_of(parts, planted(tmp_path, files), uneven, 500)
    assert said[0].startswith("the CPU quota of this process's cgroup ran out in 12 of its periods")
    assert said[1].endswith("(standard deviation over mean): the CPU quota stopped the process")
    assert len(said) == 2


@pytest.mark.parametrize(
    ("later", "steal"),
    [
        ("cpu  160 0 0 120 0 0 0 30 5 5\ncpu0 1\n", "20%"),
        ("cpu  160 0 0 120 0 0 0 nan 5 5\n", None),
        ("cpu  160 0 0 120 0 0 0x1e 30\n", None),
        ("cpu  160 0 0 120\n30 0 0 9", None),
        ("intr 160 0 0 120 0 0 0 30", None),
        ("cpu  160 0 0 120 0 0 0 110\n", "56%"),
        ("cpu  1160 0 0 120 0 0 0 15\n", None),
    ],
)
def test_steal_is_read_from_proc_stat(parts: Path, later: str, steal: str | None, tmp_path: Path) -> None:
    root = planted(tmp_path, {"proc/stat": "cpu  100 0 0 100 0 0 0 10 0 0\n", "later_stat": later})
    want = f"the virtual machine's host took {steal} of the CPU away: measure on a quiet host"
    assert warnings_of(parts, root, np.full(50, 1.0)) == ([want] if steal else [])


@pytest.fixture
def little_cpu() -> Iterator[Path]:
    """A cgroup of this machine below our own that lends a fiftieth of a CPU: less than a loaded machine leaves us."""
    own = cpu_group()
    if not own.folders:
        skip_for_lack_of("a cgroup with a cpu controller")
    folder = own.folders[0] / f"subbyte-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        skip_for_lack_of(f"the right to make a cgroup ({error.strerror})")
    try:
        if own.version == 2:
            (folder / "cpu.max").write_text("2000 100000")
        else:
            (folder / "cpu.cfs_period_us").write_text("100000")
            (folder / "cpu.cfs_quota_us").write_text("2000")
        yield folder
    except OSError as error:
        skip_for_lack_of(f"a cgroup that takes a CPU quota ({error.strerror})")
    finally:
        folder.rmdir()


def test_the_kernel_throttles_and_we_see_it(parts: Path, little_cpu: Path) -> None:
    """A process of its own enters the group, burns 20 ms of CPU time, the quota of ten periods, and sees it."""
    code = f"""
import os, subprocess, time
from pathlib import Path
(Path({str(little_cpu)!r}) / "cgroup.procs").write_text(str(os.getpid()))
start = time.process_time()
while time.process_time() - start < 0.02: pass
subprocess.run([{str(parts)!r}, "cgroup", ""], check=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["quota"] == 0.02
    assert found["throttled"] > 0


# ---- passes, of a session whose every run takes 3 ms ----


def measured(parts: Path, what: int, iterations: int, seconds: float, warmup: int, last_tick: int = 0) -> Any:
    return said_by(parts, "measure", *map(str, (what, iterations, seconds, warmup, last_tick)))


def test_latency_then_operators_each_in_a_pass_of_its_own(parts: Path) -> None:
    said = measured(parts, LATENCY | OPERATORS, 40, 0.0, 5)
    found = said["found"]
    assert (said["status"], said["resets"], said["runs"]) == (0, 1, 5 + 40 + 50)
    assert (found["warmup"], found["iterations"], found["warnings"]) == (5, 40, [])
    assert found["latency_ms"] == {"min": 3.0, "mean": 3.0, "p50": 3.0, "p90": 3.0, "p99": 3.0, "std": 0.0}
    assert found["end_ns"] - found["start_ns"] == 40 * 3_000_000
    of_passes = [1000 + 10 * run for run in range(46, 96)]
    assert found["operators"] == [
        {"name": "first", "ns": min(of_passes), "ns_median": int(np.median(of_passes))},
        {"name": 'sec"ond', "ns": 7, "ns_median": 7},
    ]


def test_seconds_take_a_tenth_of_them_to_warm_up(parts: Path) -> None:
    said = measured(parts, LATENCY, 0, 2.0, 5)
    assert (said["found"]["warmup"], said["found"]["iterations"], said["found"]["operators"]) == (67, 667, [])
    assert said["runs"] == 67 + 667
    assert said["ticks"] == pytest.approx(2.2 / 0.1, abs=2)


def test_operators_alone_are_profiled_as_often_as_asked(parts: Path) -> None:
    said = measured(parts, OPERATORS, 3, 0.0, 0)
    assert (said["runs"], said["found"]["iterations"]) == (3, 0)
    assert said["found"]["operators"][0] == {"name": "first", "ns": 1010, "ns_median": 1020}
    assert "latency_ms" not in said["found"]


def test_runs_alone_are_counted_for_a_meter(parts: Path) -> None:
    found = measured(parts, 0, 0, 0.3, 0)["found"]
    assert (found["iterations"], found["end_ns"] - found["start_ns"], found["operators"]) == (100, 300_000_000, [])
    assert measured(parts, 0, 0, 0.0, 0)["found"]["iterations"] == 1
    assert measured(parts, 0, 7, 9.0, 0)["found"]["iterations"] == 7


@pytest.mark.parametrize("what", [0, LATENCY, OPERATORS])
@pytest.mark.parametrize("last_tick", [1, 2, 5])
def test_the_caller_ends_it_at_a_tick(parts: Path, what: int, last_tick: int) -> None:
    said = measured(parts, what, 900, 0.0, 0, last_tick)
    assert (said["status"], said["ticks"], said["found"]) == (STOPPED, last_tick, None)
    assert said["runs"] == pytest.approx((last_tick - 1) * 100 / 3, abs=last_tick)


@pytest.mark.parametrize(
    "options",
    [
        *((1, -1, 1.0, 0), (1, 1_000_001, 1.0, 0), (1, 0, -1.0, 0)),
        *((1, 0, float("nan"), 0), (1, 1, 1.0, -1), (2, 0, 1.0, 0)),
    ],
)
def test_options_that_cannot_be(parts: Path, options: tuple[int, int, float, int]) -> None:
    said = measured(parts, *options)
    assert (said["status"], said["runs"], said["found"]) == (1, 0, None)
