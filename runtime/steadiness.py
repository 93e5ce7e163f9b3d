"""Is a series of latencies steady, and if not, why?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from subbyte.runtime.cgroup import cpu_group
from subbyte.runtime.sysfs import integer, text_of

MAX_VARIATION = 0.10  # standard deviation over mean
MAX_DRIFT = 0.05  # of the median, from the first third to the last
MAX_TAIL = 1.5  # 99th percentile over median
MAX_STEAL = 0.01  # share of CPU time that a hypervisor took away


@dataclass(frozen=True)
class Observed:
    """What the system did while we measured; None where it does not tell."""

    preemptions_per_s: float | None  # times that another thread took our core
    steal: float | None  # share of all CPU time
    throttled: int | None = None  # periods in which the CPU quota of our cgroup ran out


class Disturbance:
    """Watches the system from its making until `stop`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = stat = root / "proc/stat"
        self._group = cpu_group(root)
        self._throttled = self._group.throttled()
        self._start = time.perf_counter()
        self._preemptions = _preemptions()
        self._ticks = _cpu_ticks(stat)

    def stop(self) -> Observed:
        elapsed = max(1e-9, time.perf_counter() - self._start)
        now, ticks = _preemptions(), _cpu_ticks(self._stat)
        rate = None if now is None or self._preemptions is None else (now - self._preemptions) / elapsed
        steal = None
        if ticks is not None and self._ticks is not None and ticks[1] > self._ticks[1]:
            steal = (ticks[0] - self._ticks[0]) / (ticks[1] - self._ticks[1])
        throttled = self._group.throttled()
        stopped = None if throttled is None or self._throttled is None else throttled - self._throttled
        return Observed(rate, steal, stopped)


def unsteadiness(seconds: npt.NDArray[np.float64], observed: Observed) -> list[str]:
    """Why the samples [calls] should not be trusted, one sentence each; empty when they are steady."""
    found = []
    if observed.throttled:
        found.append(
            f"the CPU quota of this process's cgroup ran out in {observed.throttled} of its periods, and the process "
            f"was stopped until the next: raise the quota (cpu.max, docker --cpus), or use fewer threads"
        )
    if len(seconds) < 30:
        found.append(f"only {len(seconds)} calls were timed: percentiles need more, measure for longer")
    variation = float(seconds.std() / seconds.mean())
    middle, high = np.percentile(seconds, (50, 99))
    if variation > MAX_VARIATION:
        found.append(f"latency varies by {variation:.0%} (standard deviation over mean){_reason(observed)}")
    elif high > MAX_TAIL * middle:
        found.append(f"one call in a hundred takes {high / middle:.1f} times the median{_reason(observed)}")
    drift = drift_of(seconds)
    if drift > MAX_DRIFT:
        found.append(
            f"latency rose by {drift:.0%} from the first third to the last: the processor heats up or slows its clock"
        )
    elif drift < -MAX_DRIFT:
        found.append(f"latency fell by {-drift:.0%} from the first third to the last: warm up for longer")
    if observed.steal is not None and observed.steal > MAX_STEAL:
        found.append(f"the virtual machine's host took {observed.steal:.0%} of the CPU away: measure on a quiet host")
    return found


def drift_of(seconds: npt.NDArray[np.float64]) -> float:
    """Median of the last third over that of the first, less one; 0 for fewer than 9 samples."""
    third = len(seconds) // 3
    if third < 3:
        return 0.0
    return float(np.median(seconds[-third:]) / np.median(seconds[:third]) - 1.0)


def _reason(observed: Observed) -> str:
    if observed.throttled:
        return ": the CPU quota stopped the process"
    if observed.preemptions_per_s is not None and observed.preemptions_per_s > 20:
        return f": other programs took the core {observed.preemptions_per_s:.0f} times a second"
    return ": other load, a changing clock, or interrupts"


def _preemptions() -> int | None:
    """Involuntary context switches of this thread."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nivcsw


def _cpu_ticks(stat: Path) -> tuple[int, int] | None:
    """Stolen and all ticks since boot, of the machine."""
    name, *fields = (text_of(stat) or "").partition("\n")[0].split() or [""]
    ticks = [count for count in map(integer, fields[:8]) if count is not None]
    return (ticks[7], sum(ticks)) if name == "cpu" and len(ticks) == 8 else None
