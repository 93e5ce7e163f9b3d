"""What energy meters read, made up: sysfs trees of RAPL and hwmon, the log of an external meter."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def domain(root: Path, folder: str, name: str, uj: int, limit: int = 262_143_328_850) -> Path:
    return write(root / folder, name=name, energy_uj=uj, max_energy_range_uj=limit) / "energy_uj"


def log(path: Path, header: str, rows: list[tuple[float, ...]]) -> Path:
    path.write_text("\n".join([header, *(",".join(map(repr, row)) for row in rows)]))
    return path
