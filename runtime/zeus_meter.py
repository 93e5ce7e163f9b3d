"""Graphics cards whose counters the `zeus` package reads (NVML, AMD SMI); extra `energy`.

Processors go through rapl.py, boards through hwmon.py, which says which rails it adds up; zeus does not.
"""

from __future__ import annotations

import importlib
import math
import time
from pathlib import Path
from typing import Any

from subbyte.errors import EnergyError
from subbyte.runtime.energy import Reading

# What shows, without the seconds that importing zeus takes, that there may be something for it to read.
DEVICES = ("/dev/nvidiactl", "/dev/kfd")
TICK_S = 0.1  # NVML's energy counter moves every 20 to 100 ms
_WINDOW = "subbyte"


class Zeus:
    """Joules of all graphics cards. Raises EnergyError where zeus is absent or finds nothing."""

    def __init__(self, devices: tuple[str, ...] = DEVICES) -> None:
        if not any(Path(device).exists() for device in devices):
            raise EnergyError("there is no graphics card here whose energy counter zeus could read.")
        try:
            zeus: Any = importlib.import_module("zeus.monitor")
        except ImportError as error:
            raise EnergyError("the package zeus is not installed: pip install 'subbyte[energy]'.") from error
        try:
            self._monitor: Any = zeus.ZeusMonitor(cpu_indices=[])
        except Exception as error:  # each vendor's library raises its own
            raise EnergyError(f"zeus cannot read a counter here: {error}.") from error
        cards = list(self._monitor.gpu_indices)
        if not cards:
            raise EnergyError("zeus finds no graphics card with an energy counter here.")
        if self._monitor.power_monitor is not None:
            raise EnergyError("a graphics card here has no energy counter, only sampled power: not precise enough.")
        self.source = f"zeus: {' + '.join(f'gpu {index}' for index in cards)}"
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()
        self._monitor.begin_window(_WINDOW, sync_execution=False)

    def stop(self) -> Reading:
        result = self._monitor.end_window(_WINDOW, sync_execution=False)
        window = time.perf_counter() - self._started
        domains = {f"gpu {index}": float(joules) for index, joules in result.gpu_energy.items()}
        if not domains or not all(math.isfinite(joules) and joules >= 0 for joules in domains.values()):
            raise EnergyError(f"zeus gave {domains or 'no energy'} for this window, expected joules of each card.")
        return Reading(sum(domains.values()), window, int(window / TICK_S), domains)
