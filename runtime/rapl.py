"""RAPL counters of Intel and AMD processors through Linux powercap: package and DRAM domains.

A counter holds microjoules, wraps at `max_energy_range_uj`, and moves about once a millisecond (Intel SDM, volume 3,
15.10). Core, uncore and psys are omitted: the package includes the first two, psys includes the package. If Linux shows
a zone for each die of a package but the processor has one counter for all of them, it counts once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from subbyte.errors import EnergyError
from subbyte.runtime.energy import Reading
from subbyte.runtime.periodic_thread import Sampler
from subbyte.runtime.sysfs import read_integer

POWERCAP = Path("/sys/class/powercap")
TICK_S = 0.001
POLL_S = 1.0  # far below the time in which a counter wraps: a minute at the least

MASKED = (
    "The powercap tree is masked, as container runtimes do. Measure outside of the container, or start it with "
    "`docker run --security-opt systempaths=unconfined` or `podman run "
    "--security-opt unmask=/sys/devices/virtual/powercap`."
)


@dataclass
class _Domain:
    name: str
    folder: Path
    range_uj: int = 0
    last_uj: int = 0
    total_uj: int = 0

    def read(self) -> int:
        """Microjoules now."""
        now = _integer(self.folder / "energy_uj")
        if not 0 <= now <= self.range_uj:
            raise EnergyError(
                f"{self.folder / 'energy_uj'} holds {now}, expected 0 .. {self.range_uj}, its max_energy_range_uj"
            )
        return now


class Rapl:
    """Joules of all packages and their DRAM. Raises EnergyError where powercap is absent, masked or closed."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._domains, mirrors = _find(root)
        names = " + ".join(domain.name for domain in self._domains)
        left_out = f"; left out: {', '.join(mirrors)}, the same counter" if mirrors else ""
        self.source = f"RAPL {names} (powercap{left_out})"
        self._sampler = Sampler(lambda _now: self._update(), POLL_S)
        self._started = 0.0

    def start(self) -> None:
        for domain in self._domains:
            domain.last_uj = domain.read()
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
            now = domain.read()
            step = now - domain.last_uj
            domain.total_uj += step if step >= 0 else step + domain.range_uj
            domain.last_uj = now


def _find(root: Path) -> tuple[list[_Domain], list[str]]:
    """The domains to add up, and the names of those that mirror one of them."""
    found: dict[str, _Domain] = {}
    mirrors: list[str] = []
    # intel-rapl before intel-rapl-mmio, which shows the same package again
    for folder in sorted(root.glob("intel-rapl*:*"), key=lambda path: ("mmio" in path.name, path.name)):
        name = _name(folder)
        if name == "dram":  # its package is the parent: intel-rapl:0:2 is in intel-rapl:0
            name = _name(root / folder.name.rpartition(":")[0]).replace("package", "dram", 1)
        elif not name.startswith("package"):
            continue
        if name in found or name in mirrors:
            continue
        domain = _Domain(name, folder, _integer(folder / "max_energy_range_uj"))
        domain.read()
        if any(_mirror(domain, other) for other in found.values()):
            mirrors.append(name)
        else:
            found[name] = domain
    if not found:
        raise EnergyError(
            f"there is no RAPL counter in {root}: the processor has none, the kernel lacks intel_rapl (sudo modprobe "
            f"intel_rapl_common intel_rapl_msr), or this is a virtual machine or container."
        )
    return list(found.values()), mirrors


def _mirror(domain: _Domain, other: _Domain) -> bool:
    """Whether two dies of a package share a counter: a value read between two readings of the other is between them."""
    if domain.name.partition("-die-")[0] != other.name.partition("-die-")[0] or domain.range_uj != other.range_uj:
        return False
    before, between, after = other.read(), domain.read(), other.read()
    return before <= between <= after if before <= after else between >= before or between <= after  # it wrapped


def _name(folder: Path) -> str:
    path = folder / "name"
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError as error:
        if folder.exists():
            raise EnergyError(f"{folder} has no file 'name': it is not a powercap zone.") from error
        raise EnergyError(f"{folder} points nowhere. {MASKED}") from error
    except PermissionError as error:
        raise EnergyError(f"cannot read {path}: permission denied. {_grant(path)}") from error
    except OSError as error:
        raise EnergyError(f"cannot read {path}: {error.strerror}. Is its driver loaded?") from error


def _grant(path: Path) -> str:
    why = " (it is closed by default, CVE-2020-8694)" if path.name == "energy_uj" else ""
    zones = path.parent.parent / "intel-rapl*" / path.name
    return f"Grant it until the next boot with: sudo chmod a+r {zones}{why}, or run as root."


def _integer(path: Path) -> int:
    return read_integer(path, "microjoules", _grant(path))
