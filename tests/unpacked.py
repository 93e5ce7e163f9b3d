"""Members of a bundle as files, as `unzip` leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def unpacked(members: Mapping[str, bytes], folder: Path) -> Path:
    """Writes the members into the folder; returns where the bench program is, if there is one."""
    for name, data in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    program = folder / "bench"
    if "bench" in members:
        program.chmod(0o755)
    return program
