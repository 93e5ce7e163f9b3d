"""Meters: logs in CSV by a grammar, whose energy is known where they are right; counters in trees like sysfs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from corruption import Rng, corrupted, number, pick
from kinds import Fault

from subbyte.runtime.cgroup import cpu_group
from subbyte.runtime.hwmon import Hwmon
from subbyte.runtime.meter_csv import integrate, read_csv
from subbyte.runtime.rapl import Rapl

UNITS = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "power": {"w": 1.0, "mw": 1e-3, "uw": 1e-6},
    "current": {"a": 1.0, "ma": 1e-3, "ua": 1e-6, "na": 1e-9},
    "voltage": {"v": 1.0, "mv": 1e-3, "uv": 1e-6},
}


def prepare(folder: Path) -> None:
    """Nothing is needed."""


def case(state: None, rng: Rng, folder: Path) -> str:
    """A log, or a tree of counters."""
    (folder / "given").mkdir()
    return _log(rng, folder / "given" / "log.csv") if rng.random() < 0.7 else _tree(rng, folder / "given")


# ---- logs ----


def _log(rng: Rng, path: Path) -> str:
    """A power that grows steadily, written as instruments do; then spoilt or not."""
    first, growth = float(rng.integers(1, 2000)) / 100, float(rng.integers(0, 9)) / 4
    step = float(pick(rng, (0.5, 0.25, 0.001, 1.0)))
    rows = int(rng.integers(20, 60))
    volts = float(pick(rng, (1.0, 2.0, 4.0))) if rng.random() < 0.5 else None
    columns = [("time", [step * row for row in range(rows)])]
    if volts is None:
        columns.append(("power", [first + growth * row for row in range(rows)]))
    else:
        columns.append(("current", [(first + growth * row) / volts for row in range(rows)]))
        columns.append(("voltage", [volts] * rows))
    columns += [(f"d{i}", [float(i)] * rows) for i in range(int(rng.integers(0, 3)))]
    order = [int(i) for i in rng.permutation(len(columns))]
    delimiter, mark = pick(rng, ((",", "."), (";", ","), (";", "."), ("\t", ","), ("\t", ".")))
    titles, cells = [], []
    for name, values in (columns[i] for i in order):
        unit, factor = pick(rng, list(UNITS[name].items())) if name in UNITS else ("", 1.0)
        form = pick(rng, ("{0}_{1}", "{0} ({1})", "{0}({1})", "{0} [{1}]")) if unit else "{0}"
        titles.append(form.format(name, unit))
        cells.append([_digits(v / factor, mark) for v in values])
    lines = [delimiter.join(titles), *(delimiter.join(row) for row in zip(*cells, strict=True))]
    if rng.random() < 0.3:
        lines.insert(0, pick(rng, ("# made by a meter", "% 12", "// x", "", f"sep={delimiter}")))
    text = pick(rng, ("\n", "\r\n")).join(lines) + "\n"
    data = text.encode(pick(rng, ("utf-8", "utf-8-sig", "utf-16", "utf-16-le")))
    right = rng.random() < 0.5
    if not right:
        data = _spoilt(text, rng) if rng.random() < 0.5 else corrupted(data, rng, 4)
    path.write_bytes(data)
    seconds, power = read_csv(path)
    if not right:
        if not (np.isfinite(seconds).all() and np.isfinite(power).all() and (np.diff(seconds) >= 0).all()):
            raise Fault("samples that are not finite or not in order")
        return "read"
    begin, end = 0.2 * step * (rows - 1), 0.9 * step * (rows - 1)
    joules = (end - begin) * (first + growth * (begin + end) / 2 / step)
    found = integrate(seconds, power, begin, end, "the log").joules
    if not math.isclose(found, joules, rel_tol=1e-6):
        raise Fault(f"{found} J for {joules} J")
    return "right"


def _digits(value: float, mark: str) -> str:
    return f"{value:.12g}".replace(".", mark)


def _spoilt(text: str, rng: Rng) -> bytes:
    """Cells and titles in which something else stands."""
    lines = text.splitlines()
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        words = (
            "nan",
            "inf",
            "1e999",
            "-1e308",
            "1_000",
            "0x10",
            "\u0661",
            "",
            '"',
            '"a\nb"',
            "x" * 200_000,
            "=1+1",
            "\0",
        )
        others = ("power_w", "Power (MW)", "time_h", "current_ma", "power_mw", "1,5", str(number(rng)), "1e-400")
        parts = lines[at].split(pick(rng, (",", ";", "\t")))
        parts[int(rng.integers(len(parts)))] = pick(rng, words + others)
        lines[at] = pick(rng, (",", ";", "\t")).join(parts)
        if rng.random() < 0.2:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
    return "\n".join(lines).encode("utf-8", "replace")


# ---- trees ----


def _tree(rng: Rng, root: Path) -> str:
    """Counters and sensors whose files hold what the kernel writes, or something else."""
    way = int(rng.integers(3))
    if way == 0:
        for i in range(int(rng.integers(1, 3))):
            zone = {"name": f"package-{i}", "energy_uj": 10_000 * i + 5, "max_energy_range_uj": 262_143_328_850}
            _files(root / f"intel-rapl:{i}", zone, rng)
        found = [domain.read() for domain in Rapl(root)._domains]
        if not all(type(value) is int for value in found):
            raise Fault(f"counters {found}")
    elif way == 1:
        for i in range(int(rng.integers(1, 3))):
            sensors = {"name": "ina226", "power1_input": 1_500_000, "in1_input": 5000, "curr1_input": 300}
            if rng.random() < 0.5:
                sensors = {"name": "ina219", "energy1_input": 77}
            _files(root / f"hwmon{i}", sensors | {"power1_label": "VDD_IN"}, rng)
        named = None if rng.random() < 0.2 else [pick(rng, ("hwmon0/power1", "hwmon0/energy1", "VDD_IN", "ina226"))]
        watts = [rail.watts() for rail in Hwmon(root, named, device_tree=root / "none")._rails if rail.watts]
        if not all(math.isfinite(value) for value in watts):
            raise Fault(f"{watts} W")
    else:
        group = "0::/a/b\n"
        tree = {"proc/self": {"cgroup": group, "mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"}}
        tree["sys/fs/cgroup/a/b"] = {"cpu.max": "250000 100000", "cpu.stat": "nr_periods 5\nnr_throttled 2"}
        for folder, files in tree.items():
            _files(root / folder, files, rng)
        quota = cpu_group(root).quota()
        if quota is not None and not quota > 0:
            raise Fault(f"a quota of {quota} CPUs")
    return "read"


def _files(folder: Path, files: dict[str, object], rng: Rng) -> None:
    folder.mkdir(parents=True)
    for name, value in files.items():
        data = f"{value}\n".encode()
        if rng.random() < 0.2:
            odd = (b"", b"\n", b"-1\n", b"nan\n", b"1e9\n", b"\xff\xfe\n", b"9" * 400, b"0 0\n", b"max\n", b"max 0\n")
            data = pick(rng, odd) if rng.random() < 0.6 else corrupted(data, rng)
        if rng.random() < 0.03:
            (folder / name).mkdir()
        elif rng.random() > 0.03:
            (folder / name).write_bytes(data)
