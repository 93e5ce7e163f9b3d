"""What a figure was measured on: processor, clock, load, memory, system, as runtime/c/machine.c finds them.

A library has that code, so it is asked where a library is loaded. `host.py` reads again only what is needed without
one: the CPU features of `--target host`, the cores for a session's threads, and the CPU's name for `doctor`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from subbyte import __version__
from subbyte.errors import SessionError
from subbyte.runtime.native import MeasureFunctions


@dataclass(frozen=True)
class Machine:
    """The machine's context; None where the system does not tell, and of what an emulator's host alone knows."""

    cpu: str | None
    architecture: str
    features: tuple[str, ...]  # of runtime/features.py, as the CPU itself or the system's kernel says
    logical_cpus: int
    physical_cores: int
    usable_cores: int  # by affinity and cgroup quota
    governor: str | None
    mhz: float | None  # now
    mhz_min: float | None
    mhz_max: float | None
    boost: bool | None
    temperature_c: float | None  # the hottest zone
    load_1min: float | None
    memory_bytes: int | None
    memory_available_bytes: int | None
    system: str
    kernel: str
    virtualised: bool | None
    python: str
    numpy: str
    subbyte: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def described(functions: MeasureFunctions, threads: int) -> tuple[Machine, list[str]]:
    """This machine, and why figures of `threads` threads may not be steady on it: one sentence each, with what to do.

    `functions` are those of `native.Library.machine`. Raises SessionError when memory runs out.
    """
    ask, free = functions
    text = ctypes.c_void_p()
    if ask(threads, ctypes.byref(text)) or not text.value:
        raise SessionError("there is no memory to describe the machine: free some")
    found = json.loads(ctypes.string_at(text.value))
    free(text)
    facts = found["machine"]
    facts["features"] = tuple(facts["features"])
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return Machine(**facts, python=python, numpy=np.__version__, subbyte=__version__), found["warnings"]
