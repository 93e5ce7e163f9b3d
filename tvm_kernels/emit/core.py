"""The C core as emitters compile it: its files, and the flags that all of them take."""

from __future__ import annotations

from pathlib import Path

import subbyte.runtime

CORE = ("run.c", "needs.c", "state.c", "session.c", "threads.c", "cores.c")
C_FLAGS = ("-std=c99", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections", "-g0")


def core_folder() -> Path:
    """Where the C core's sources are."""
    return Path(subbyte.runtime.__file__).parent / "c"
