"""Cold start: from a fresh process to the first result, and the memory it then holds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from subbyte.errors import SessionError

RUNS = 3
LIMIT_S = 120

# Runs in the child; times on the clock that all processes of a machine share.
_CHILD = """
import sys, time
started = time.monotonic()
import subbyte.runtime
import numpy
session_of = subbyte.runtime.load
imported = time.monotonic()
session = session_of(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.monotonic()
inputs = [numpy.zeros(tensor.shape, tensor.dtype) for tensor in session.inputs]
prepared = time.monotonic()
session.run(inputs)
finished = time.monotonic()
memory = {}
try:
    for line in open("/proc/self/status"):
        key, _, value = line.partition(":")
        if key in ("VmRSS", "VmHWM"):
            memory[key] = 1024 * int(value.split()[0])
except OSError:
    pass
import json
print(json.dumps([started, imported, loaded, prepared, finished, memory.get("VmRSS"), memory.get("VmHWM")]))
"""


@dataclass(frozen=True)
class ColdStart:
    """Milliseconds from a fresh process to the first result, medians of `runs`; the page cache may hold the file."""

    python_ms: float  # starting the interpreter
    import_ms: float  # subbyte.runtime and NumPy
    load_ms: float  # open, check, map, link
    first_result_ms: float
    total_ms: float  # from before the process was made
    resident_bytes: int | None  # after the first result
    peak_bytes: int | None
    runs: int


def measure_cold_start(path: str | Path, threads: int = 1, runs: int = RUNS) -> ColdStart:
    """Start `runs` fresh processes that load the bundle and run it on zeros; raises SessionError when one fails."""
    rows = [_once(path, threads) for _ in range(runs)]
    return ColdStart(
        python_ms=statistics.median(row.python_ms for row in rows),
        import_ms=statistics.median(row.import_ms for row in rows),
        load_ms=statistics.median(row.load_ms for row in rows),
        first_result_ms=statistics.median(row.first_result_ms for row in rows),
        total_ms=statistics.median(row.total_ms for row in rows),
        resident_bytes=max((row.resident_bytes for row in rows if row.resident_bytes is not None), default=None),
        peak_bytes=max((row.peak_bytes for row in rows if row.peak_bytes is not None), default=None),
        runs=runs,
    )


def _once(path: str | Path, threads: int) -> ColdStart:
    command = [sys.executable, "-c", _CHILD, os.fspath(path), str(threads)]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SessionError(f"the cold start could not be measured: {error}. Use cold=False to leave it out.") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SessionError(f"a fresh process could not run the bundle: {reason}. Use cold=False to leave this out.")
    started, imported, loaded, prepared, finished, resident, peak = json.loads(done.stdout.splitlines()[-1])
    return ColdStart(
        python_ms=1e3 * (started - begin),
        import_ms=1e3 * (imported - started),
        load_ms=1e3 * (loaded - imported),
        first_result_ms=1e3 * (finished - prepared),
        total_ms=1e3 * (finished - begin),
        resident_bytes=resident,
        peak_bytes=peak,
        runs=1,
    )
