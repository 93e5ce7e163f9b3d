"""The C core as emitters compile it: its files, and the flags that all of them take."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import subbyte.runtime
from subbyte.tvm_kernels.toolchain import Toolchain

CORE = ("run.c", "failure.c", "needs.c", "state.c", "session.c", "threads.c", "cores.c")
MEASURE = ("measure.c", "steadiness.c", "json.c", "system_files.c", "cgroup.c", "machine.c")  # for Linux
C_FLAGS = ("-std=c99", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections", "-g0")


def core_folder() -> Path:
    """Where the C core's sources are."""
    return Path(subbyte.runtime.__file__).parent / "c"


@functools.cache
def cached_objects(toolchain: Toolchain, sources: tuple[str, ...], flags: tuple[str, ...]) -> dict[str, bytes]:
    """Object files by name, of sources that are the same for every model: compiled once."""
    with tempfile.TemporaryDirectory(prefix="subbyte-") as name:
        for group in (
            [[source] for source in sources] if toolchain.is_zig else [sources]
        ):  # zig keeps one object of a call
            paths = [core_folder() / source for source in group]
            toolchain.compile([*flags, *toolchain.c_flags, f"-I{core_folder()}", "-c", *paths], Path(name))
        return {path.name: path.read_bytes() for path in Path(name).glob("*.o")}
