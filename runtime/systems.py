"""Operating systems: what Python, target triples and zig call them. To add one: a row of SYSTEMS."""

from __future__ import annotations

import sys
from typing import NamedTuple


class System(NamedTuple):
    """An operating system for which libraries are compiled."""

    name: str
    python: str  # sys.platform
    triple: str  # the triples that we compile for, after the architecture
    zig: str  # the same of `zig cc -target`
    also: tuple[str, ...] = ()  # beside the name: a part of other triples begins so


SYSTEMS = (
    System("linux", python="linux", triple="linux-gnu", zig="linux-gnu"),
    System("macos", python="darwin", triple="apple-darwin", zig="macos", also=("darwin",)),
    System("windows", python="win32", triple="windows-gnu", zig="windows-gnu"),
)


def this_system() -> System | None:
    """The one that runs this process; None where it is none of SYSTEMS."""
    return next((system for system in SYSTEMS if system.python == sys.platform), None)


def system_of(triple: str) -> System | None:
    """The one that a triple names; None for one without an operating system, or another."""
    parts = triple.lower().split("-")[1:]
    found = (system for system in SYSTEMS for part in parts if part.startswith((system.name, *system.also)))
    return next(found, None)
