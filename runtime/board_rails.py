"""Which rails of a board's power sensors add up to its total, by board. To add a board, add its row to BOARDS.

A row is taken from the board's own documents, here the NVIDIA Jetson Linux Developer Guide, "Platform Power and
Performance", the tables of INA3221 rails; a board whose sum is not certain has none. A label alone says nothing:
VIN_SYS_5V0 is one input of three on a Jetson AGX Orin.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DEVICE_TREE = Path("/proc/device-tree")


@dataclass(frozen=True)
class Board:
    """A board, its modules' part numbers in the device tree's `compatible`, and the rails whose sum is its total."""

    name: str
    modules: tuple[str, ...]
    device: str  # of the sensors, in hwmon
    total: tuple[str, ...]
    covers: str = "the module"


BOARDS = (
    Board("Jetson Nano", ("p3448",), "ina3221", ("POM_5V_IN",)),
    Board("Jetson TX2", ("p3310",), "ina3221", ("VDD_IN",)),
    Board("Jetson Xavier NX", ("p3668",), "ina3221", ("VDD_IN",)),
    Board("Jetson Orin Nano or Orin NX", ("p3767",), "ina3221", ("VDD_IN",)),
    # VIN_SYS_5V0 feeds the memory, so it includes VDDQ_VDD2_1V8AO.
    Board("Jetson AGX Orin", ("p3701",), "ina3221", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
)


def board_name(device_tree: Path = DEVICE_TREE) -> str | None:
    """What the device tree calls this board; None where there is none, as on a PC."""
    return " ".join(_strings(device_tree / "model")) or None


def find_board(device_tree: Path = DEVICE_TREE) -> Board | None:
    """The row of the one board whose module is in this machine's device tree."""
    # "nvidia,p3737-0000+p3701-0000": carrier and module, each with its variant
    parts = {part for text in _strings(device_tree / "compatible") for part in re.split(r"[,+-]", text)}
    found = [board for board in BOARDS if parts & set(board.modules)]
    return found[0] if len(found) == 1 else None


def _strings(path: Path) -> list[str]:
    """Strings of a device tree's property: each ends with NUL."""
    try:
        return [text for text in path.read_bytes().decode(errors="replace").split("\0") if text.strip()]
    except OSError:
        return []
