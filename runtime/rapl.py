"""RAPL counters of Intel and AMD processors through Linux powercap: package and DRAM domains.

A counter holds microjoules, wraps at `max_energy_range_uj`, and moves about once a millisecond (Intel SDM, volume 3,
15.10). Core, uncore and psys are left out: the first two lie inside the package, the last around it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from subbyte.errors import EnergyError
from subbyte.runtime.energy import Reading
from subbyte.runtime.sampling import Sampler

POWERCAP = Path("/sys/class/powercap")
TICK_S = 0.001
POLL_S = 1.0  # far below the time in which a counter wraps: a minute at the least

GRANT = (
    "Grant it until the next boot with: sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj "
    "(it is closed by default, CVE-2020-8694), or run as root."
)


@dataclass
class _Domain:
    name: str
    path: Path
    range_uj: int
    last_uj: int = 0
    total_uj: int = 0


class Rapl:
    """Joules of all packages and their DRAM. Raises EnergyError where powercap is absent or closed."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._domains = _find(root)
        self.source = f"RAPL {' + '.join(domain.name for domain in self._domains)} (powercap)"
        self._sampler = Sampler(lambda _now: self._update(), POLL_S)
        self._started = 0.0

    def start(self) -> None:
        for domain in self._domains:
            domain.last_uj = _read_uj(domain.path)
            domain.total_uj = 0
        self._started = time.perf_counter()
        self._sampler.start()

    def stop(self) -> Reading:
        self._sampler.stop()
        window = time.perf_counter() - self._started
        domains = {domain.name: domain.total_uj / 1e6 for domain in self._domains}
        if window >= 100 * TICK_S and not any(domains.values()):
            raise EnergyError(
                f"{self.source} did not move in {window:.2f} s: the counter is frozen, as in some virtual machines. "
                f"Measure on the bare machine."
            )
        return Reading(sum(domains.values()), window, int(window / TICK_S), domains)

    def _update(self) -> None:
        for domain in self._domains:
            now = _read_uj(domain.path)
            step = now - domain.last_uj
            domain.total_uj += step if step >= 0 else step + domain.range_uj
            domain.last_uj = now


def _find(root: Path) -> list[_Domain]:
    found: dict[str, _Domain] = {}
    # intel-rapl before intel-rapl-mmio, which shows the same package again
    for folder in sorted(root.glob("intel-rapl*:*"), key=lambda path: ("mmio" in path.name, path.name)):
        name = _read(folder / "name")
        if name.startswith("package"):
            key = name
        elif name == "dram":
            key = f"dram-{folder.name.split(':')[1]}"  # of that package
        else:
            continue
        if key in found:
            continue
        limit = _integer(folder / "max_energy_range_uj")
        _read_uj(folder / "energy_uj")
        found[key] = _Domain(key, folder / "energy_uj", limit)
    if not found:
        raise EnergyError(
            f"there is no RAPL counter in {root}: the processor has none, the kernel lacks intel_rapl (sudo modprobe "
            f"intel_rapl_common intel_rapl_msr), or this is a virtual machine or container."
        )
    return list(found.values())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError as error:
        raise EnergyError(f"cannot read {path}: permission denied. {GRANT}") from error
    except OSError as error:
        raise EnergyError(
            f"cannot read {path}: {error.strerror}. The powercap tree changed while it was read."
        ) from error


def _integer(path: Path) -> int:
    text = _read(path)
    if not text.isdigit():
        raise EnergyError(f"{path} holds {text[:40]!r}, expected a number of microjoules")
    return int(text)


def _read_uj(path: Path) -> int:
    return _integer(path)
