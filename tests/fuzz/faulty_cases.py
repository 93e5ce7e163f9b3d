"""Cases that fail in every way that the runner must see; test_fuzz.py runs them."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import numpy as np
from kinds import Fault, Kind
from pieces import generator

from subbyte.errors import ModelError

FAULTY = Kind("faulty", "faulty_cases", "nothing", 10, 10, room=1 << 30, seconds=2.0)


def prepare(folder: Path) -> dict[int, int]:
    """A case's first random number -> the case."""
    return {int(generator(FAULTY, 0, index).integers(1 << 60)): index for index in range(FAULTY.wanted)}


def case(state: dict[int, int], rng: np.random.Generator, folder: Path) -> str:
    """Fails as its number says."""
    index = state[int(rng.integers(1 << 60))]
    if index == 1:
        raise KeyError("oops")
    if index == 2:
        (folder / "beside").touch()
    if index == 3:
        os.close(tempfile.mkstemp()[0])
    if index == 4:
        raise Fault("another number")
    if index == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    while index == 6:
        pass
    if index == 7:
        bytearray(2 << 30)
    if index == 8:
        np.float32(3e38) * np.float32(10)
    if index == 9:
        raise ModelError("no model")
    (folder / "given").touch()
    return "read"
