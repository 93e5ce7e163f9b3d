"""Finds a C compiler for a target, and runs it: a system compiler if there is one, else Zig's from PyPI (`ziglang`).

Zig links for the oldest glibc of a target whatever glibc this system has; emit/shared_library.py asks for it where the
system's compiler cannot. It builds its C library on first use for a target: seconds for glibc, minutes for musl.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from subbyte.errors import ToolchainError, WriteError
from subbyte.files.output import what_to_do_of_tool
from subbyte.tvm_kernels.machines.architecture import beside
from subbyte.tvm_kernels.machines.target import Target

TIMEOUT_SECONDS = 900  # zig's first build for a target included
LINE = 300  # characters of a tool's line that an error repeats; gcc's list of CPUs has thousands


@dataclass(frozen=True)
class Toolchain:
    """A C compiler that builds for one target, and the archiver that goes with it."""

    compiler: tuple[str, ...]
    archiver: tuple[str, ...]
    c_flags: tuple[str, ...] = ()  # the target's, as this compiler spells them
    static_flags: tuple[str, ...] = ("-static",)
    is_chosen: bool = False  # by the environment variable CC

    @property
    def is_zig(self) -> bool:
        return "ziglang" in self.compiler

    def __str__(self) -> str:
        return f"zig {metadata.version('ziglang')}" if self.is_zig else os.path.basename(self.compiler[0])

    def compile(self, arguments: Sequence[str | Path], folder: Path) -> None:
        """Run the compiler in `folder`; raises ToolchainError with what it said."""
        run([*self.compiler, *arguments], folder, _zig_cache() if self.is_zig else None)

    def archive(self, library: Path, objects: Sequence[Path]) -> None:
        """Make a static archive of object files."""
        run([*self.archiver, "rcsD", library, *objects], library.parent)


def run(command: Sequence[str | Path], folder: Path, cache: str | None = None) -> str:
    """The output of a tool; raises ToolchainError with its last lines when it fails, WriteError when the disk is full.

    `cache`: where Zig keeps files.
    """
    words = [str(word) for word in command]
    environment = os.environ | ({"ZIG_GLOBAL_CACHE_DIR": cache} if cache else {})
    environment |= {"LC_ALL": "C"}  # its words are read below
    environment["TMPDIR"] = os.path.abspath(folder)  # an interrupted compiler leaves its files there
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",  # a compiler quotes what it reads
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"{words[0]} could not be run: {error}") from error
    if done.returncode != 0:
        known = what_to_do_of_tool(done.returncode, done.stderr + done.stdout)
        if known is not None:
            place = f"a file in the folder of temporary files, '{tempfile.gettempdir()}'"
            raise WriteError(f"{words[0]} could not write {place}: {known}")
        said = _shortened(done.stderr or done.stdout)
        raise ToolchainError(f"'{' '.join(words[:4])} ...' failed with status {done.returncode}:\n{said}")
    return done.stdout


def _shortened(said: str) -> str:
    """The last lines, each once: a compiler repeats for every source file what is wrong with its options."""
    lines = [line if len(line) <= LINE else f"{line[:LINE]} ..." for line in said.strip().splitlines()]
    return "\n".join([*dict.fromkeys(lines)][-20:])


def zig_command() -> tuple[str, ...] | None:
    """How to run Zig from the `ziglang` package; None when it is not installed."""
    return (sys.executable, "-m", "ziglang") if importlib.util.find_spec("ziglang") else None


@functools.cache
def _own_cache() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="subbyte-zig-")  # gone with the process


def _zig_cache() -> str | None:
    """None where Zig's own cache can be written; else a folder of this process: a service's home often is read-only."""
    if os.environ.get("ZIG_GLOBAL_CACHE_DIR"):
        return None
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ["HOME"] + "/.cache" if os.environ.get("HOME") else None)
    try:
        if home is not None:
            os.makedirs(f"{home}/zig", exist_ok=True)
            with tempfile.TemporaryFile(dir=f"{home}/zig"):
                return None
    except OSError:
        pass
    return _own_cache().name


def _system_compilers(target: Target) -> list[str]:
    own = [os.environ.get("CC", ""), "cc", "gcc", "clang"] if target.is_native else []
    return [*own, *([target.compiler.command] if target.compiler else [])]


def find_toolchain(target: Target) -> Toolchain:
    """The compiler for a target; raises ToolchainError that says what to install."""
    for name in _system_compilers(target):
        path = shutil.which(name) if name else None
        if path:
            chosen = target.is_native and name == os.environ.get("CC")
            return Toolchain(
                (path,),
                (shutil.which(beside(path, "ar")) or "ar",),
                target.architecture.c_flags(target, "gcc"),
                is_chosen=chosen,
            )
    zig = find_zig(target)
    if zig is not None:
        return zig
    raise ToolchainError(
        f"no C compiler for target '{target.name}' ({target.triple}). Install one: {target.remedy or 'gcc or ziglang'}"
    )


def find_zig(target: Target) -> Toolchain | None:
    """Zig as the compiler for a target, with the target's oldest glibc; None where it is not installed or cannot."""
    zig, floor, called = zig_command(), target.glibc_floor, target.zig_target
    if zig is None or not called:
        return None
    if floor and called.endswith("-gnu"):
        called += f".{floor[0]}.{floor[1]}"
    return Toolchain((*zig, "cc", "-target", called), (*zig, "ar"), target.architecture.c_flags(target, "zig"))


def find_static_toolchain(target: Target) -> Toolchain:
    """The compiler for static programs: zig links them with musl, a system compiler with its own C library."""
    toolchain = find_toolchain(target)
    if not toolchain.is_zig:
        return toolchain
    called = target.zig_target.replace("-linux-gnu", "-linux-musl")
    return replace(toolchain, compiler=(*toolchain.compiler[:-1], called))
