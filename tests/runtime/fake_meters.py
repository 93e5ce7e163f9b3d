"""What energy meters read, made up: sysfs trees of RAPL and hwmon, the log of an external meter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def domain(root: Path, folder: str, name: str, uj: int, limit: int = 262_143_328_850) -> Path:
    return write(root / folder, name=name, energy_uj=uj, max_energy_range_uj=limit) / "energy_uj"


def board(root: Path, compatible: str, model: str = "Some Board") -> Path:
    """A device tree of a board whose `compatible` has these strings, separated by spaces."""
    root.mkdir()
    (root / "compatible").write_bytes(compatible.replace(" ", "\0").encode() + b"\0")
    (root / "model").write_bytes(model.encode() + b"\0")
    return root


def ina3221(folder: Path, **rails: tuple[int, int]) -> Path:
    """An INA3221: label -> millivolts and milliamperes of a channel. Inputs 4 and up are shunts and their sum."""
    write(folder, name="ina3221", update_interval=1, in4_input=1, in5_input=2, in6_input=3, in7_input=6, curr4_input=9)
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        files = {f"in{channel}_label": label, f"in{channel}_input": millivolts, f"curr{channel}_input": milliamperes}
        write(folder, **files)
    return folder


def log(path: Path, header: str, rows: list[tuple[float, ...]]) -> Path:
    path.write_text("\n".join([header, *(",".join(map(repr, row)) for row in rows), ""]))
    return path


@contextmanager
def powerless() -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
