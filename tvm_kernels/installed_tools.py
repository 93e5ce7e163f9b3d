"""Which compilers and emulators of all targets are installed, for `subbyte doctor`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from subbyte.tvm_kernels.machines import all_targets
from subbyte.tvm_kernels.machines.architecture import Tool
from subbyte.tvm_kernels.toolchain import zig_command


@dataclass(frozen=True)
class ToolchainRow:
    """One tool: what it is for, its version if it is there, how to get it if not."""

    what: str
    found: str | None
    remedy: str


def _version(command: Sequence[str]) -> str | None:
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def _zig_version() -> str | None:
    zig = zig_command()
    return f"zig {_version([*zig, 'version'])}" if zig else None


def examine_toolchains() -> list[ToolchainRow]:
    """Compilers and emulators of all targets: what there is, and how to get what is missing."""
    native = next((v for v in (_version([name, "--version"]) for name in ("cc", "gcc", "clang")) if v), None)
    return [
        ToolchainRow("C compiler (host)", native, "apt install gcc, or pip install ziglang"),
        ToolchainRow("zig cc (any Linux target)", _zig_version(), "pip install ziglang"),
        *_cross_compilers(),
        *_emulators(),
    ]


def _cross_compilers() -> Iterator[ToolchainRow]:
    for (tool, remedy), names in _by_tool((t.compiler, t.remedy, t.name) for t in all_targets() if not t.is_native):
        yield ToolchainRow(f"C compiler ({names})", _version([tool.command, "--version"]), remedy)


def _emulators() -> Iterator[ToolchainRow]:
    for (tool, remedy), names in _by_tool((t.emulator, t.emulator.remedy, t.name) for t in all_targets() if t.emulator):
        yield ToolchainRow(f"emulator ({names})", _version([tool.command, "--version"]), remedy)


def _by_tool(rows: Iterable[tuple[Tool | None, str, str]]) -> Iterator[tuple[tuple[Tool, str], str]]:
    """Each tool once, and the names of its targets."""
    found: dict[tuple[Tool, str], list[str]] = {}
    for tool, remedy, name in rows:
        if tool is not None:
            found.setdefault((tool, remedy), []).append(name)
    return ((key, ", ".join(names)) for key, names in found.items())
