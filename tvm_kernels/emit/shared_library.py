"""What the emitter `elf` writes: LLVM objects, the plan's table and the C core, linked into one shared library.

Also, if asked for, the same as a static archive, and for Linux the program `bench` (bench_program.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from subbyte.tvm_kernels.emit.bench_program import bench_program
from subbyte.tvm_kernels.emit.core import C_FLAGS, CORE, MEASURE, cached_objects, core_folder
from subbyte.tvm_kernels.emit.emitted import Emitted, Golden
from subbyte.tvm_kernels.emit.glibc import Version, needed_glibc, version_text
from subbyte.tvm_kernels.emit.names import names_of
from subbyte.tvm_kernels.emit.program import generate
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.plan import Plan
from subbyte.tvm_kernels.toolchain import Toolchain, find_toolchain, find_zig

EXPORTS = (
    "subbyte_get_model",
    "subbyte_run",
    "subbyte_reset",
    "subbyte_status_text",
    "subbyte_failure_text",
    "subbyte_missing_features",
    "subbyte_session_create",
    "subbyte_session_run",
    "subbyte_session_failure",
    "subbyte_session_arena",
    "subbyte_session_reset",
    "subbyte_session_state",
    "subbyte_session_destroy",
    "subbyte_measure",
    "subbyte_machine",
    "subbyte_free",
)


def _compile(toolchain: Toolchain, sources: list[str], folder: Path) -> list[Path]:
    """Object files of C sources: in one call of the compiler, but zig keeps only one object of a call."""
    for group in [[source] for source in sources] if toolchain.is_zig else [sources]:
        toolchain.compile([*C_FLAGS, *toolchain.c_flags, f"-I{core_folder()}", "-c", *group], folder)
    return [folder / f"{Path(source).stem}.o" for source in sources]


def _measuring(toolchain: Toolchain, folder: Path) -> list[Path]:
    """Object files of what measures a session, small rather than fast: it waits for the model."""
    folder = folder / ("measure-zig" if toolchain.is_zig else "measure")
    folder.mkdir(exist_ok=True)
    made = cached_objects(toolchain, MEASURE, (*C_FLAGS, "-Os"))
    for name, code in made.items():
        (folder / name).write_bytes(code)
    return [folder / name for name in made]


@dataclass(frozen=True)
class _Shared:
    """library.so, and what the report and the manifest say of it."""

    data: bytes
    compiler: str
    glibc: str | None
    notes: tuple[str, ...] = ()


def _shared(toolchain: Toolchain, target: Target, sources: list[str], objects: list[Path], folder: Path) -> _Shared:
    """library.so from the objects; from the sources by zig where it would need a newer glibc than the target's oldest.

    Sources, because objects that were compiled with the headers of a new glibc may call what an older one lacks.
    """
    floor = target.glibc_floor
    data = _link_shared(toolchain, target, objects, folder)
    needed = needed_glibc(data) if floor else {}
    if floor is None or not needed:
        return _Shared(data, str(toolchain), None)
    why = _needs_newer(toolchain, needed, floor)
    if why is None:
        return _Shared(data, str(toolchain), version_text(floor))
    zig = None if toolchain.is_chosen else find_zig(target)
    if zig is None:
        remedy = "leave out CC" if toolchain.is_chosen else "pip install ziglang"
        note = f"library.so does not load on older systems: {why}; to link for {version_text(floor)}, {remedy}"
        return _Shared(data, str(toolchain), _newest(needed), (note,))
    kernels = [path for path in objects if path.name == "kernels.o"]
    data = _link_shared(zig, target, [*sources, *_measuring(zig, folder), *kernels], folder)
    needed = needed_glibc(data)
    still = _needs_newer(zig, needed, floor)
    if still is not None:
        return _Shared(data, str(zig), _newest(needed), (f"library.so does not load on older systems: {still}",))
    return _Shared(data, f"{zig}, because {why}", version_text(floor))


def _needs_newer(toolchain: Toolchain, needed: dict[str, Version], floor: Version) -> str | None:
    names = sorted(name for name, version in needed.items() if version > floor)
    return f"{toolchain} needs glibc {_newest(needed)} ({', '.join(names)})" if names else None


def _newest(needed: dict[str, Version]) -> str:
    return version_text(max(needed.values()))


def _link_shared(toolchain: Toolchain, target: Target, parts: Sequence[str | Path], folder: Path) -> bytes:
    """library.so from sources and objects."""
    command: list[str | Path] = [*C_FLAGS, *toolchain.c_flags, f"-I{core_folder()}", "-shared", "-o", "library.so"]
    command += parts
    if "linux" in target.triple:
        script = "{ global: " + " ".join(f"{name};" for name in EXPORTS) + " local: *; };"
        (folder / "exports.map").write_text(script)
        # TVM's objects do not say that they need no executable stack, so the linker must be told.
        command += ["-Wl,--version-script=exports.map", "-Wl,-z,noexecstack", "-Wl,--gc-sections", "-Wl,-s"]
        command += ["-Wl,--build-id=none", "-Wl,--as-needed", "-lm", "-lpthread"]
    toolchain.compile(command, folder)
    return (folder / "library.so").read_bytes()


def _get_model_c(plan: Plan) -> str:
    """Text of get_model.c, an object of its own: a program that several archives are linked into may not need it."""
    name = names_of(plan.name).get_model
    head = f'#include "subbyte.h"\n\nconst subbyte_model *{name}(void);\n'
    return f"{head}const subbyte_model *subbyte_get_model(void) {{ return {name}(); }}\n"


def emit_library(plan: Plan, target: Target, golden: Golden | None = None, archive: bool = False) -> Emitted:
    """weights.bin, library.so, with `archive` library.a and subbyte.h, for Linux bench.

    Raises CompileError or ToolchainError.
    """
    toolchain = find_toolchain(target)
    program = generate(plan, target)
    with tempfile.TemporaryDirectory(prefix="subbyte-") as name:
        folder = Path(name)
        (folder / "model.c").write_text(program.model_c)
        (folder / "get_model.c").write_text(_get_model_c(plan))
        sources = ["model.c", "get_model.c", *(str(core_folder() / part) for part in CORE)]
        objects = _compile(toolchain, sources, folder)
        if "linux" in target.triple:
            objects += _measuring(toolchain, folder)
        if program.kernels:
            (folder / "kernels.o").write_bytes(program.kernels)
            objects.append(folder / "kernels.o")
        shared = _shared(toolchain, target, sources, objects, folder)
        members = {"weights.bin": plan.weights, "library.so": shared.data}
        if archive:
            toolchain.archive(folder / "library.a", objects)
            members["library.a"] = (folder / "library.a").read_bytes()
            members["subbyte.h"] = (core_folder() / "subbyte.h").read_bytes()
        if "linux" in target.triple:
            members["bench"] = bench_program(plan, target, objects, golden, folder)
    return Emitted(
        *(members, program.tiles, program.workspace_bytes),
        compiler=shared.compiler,
        glibc=shared.glibc,
        notes=shared.notes,
    )
