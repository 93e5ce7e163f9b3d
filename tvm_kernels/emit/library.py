"""The `library` emitter: LLVM objects, the plan's table and the C core, linked into one self-contained shared library.

Also the same as a static archive, and for Linux a static `bench` program with weights and golden tensors inside.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import subbyte.runtime
from subbyte import __version__
from subbyte.runtime.energy_model import model_operators
from subbyte.runtime.golden import MOST_MOVED
from subbyte.tvm_kernels.abi import compile_objects
from subbyte.tvm_kernels.emit.emitted import (
    Emitted,
    Golden,
    check_arguments,
    symbols,
    workspace_bytes,
)
from subbyte.tvm_kernels.emit.glibc import Version, needed_glibc, version_text
from subbyte.tvm_kernels.emit.model_c import c_string, model_c
from subbyte.tvm_kernels.emit.names import names_of
from subbyte.tvm_kernels.plan import Plan
from subbyte.tvm_kernels.targets import Target
from subbyte.tvm_kernels.toolchain import Toolchain, find_static_toolchain, find_toolchain, find_zig

CORE = ("run.c", "needs.c", "session.c", "threads.c", "cores.c")
BENCH = (
    *("bench.c", "bench_report.c", "bench_json.c", "bench_machine.c", "bench_cgroup.c"),
    *("bench_steady.c", "bench_energy.c", "bench_start.c"),
)
EXPORTS = (
    "subbyte_get_model",
    "subbyte_run",
    "subbyte_status_text",
    "subbyte_failure_text",
    "subbyte_missing_features",
    "subbyte_session_create",
    "subbyte_session_run",
    "subbyte_session_failure",
    "subbyte_session_arena",
    "subbyte_session_destroy",
)
C_FLAGS = ("-std=c99", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections", "-g0")
BENCH_FLAGS = tuple(flag for flag in C_FLAGS if flag != "-fPIC")


def core_folder() -> Path:
    """Where the C core's sources are."""
    return Path(subbyte.runtime.__file__).parent / "c"


def _compile(toolchain: Toolchain, sources: list[str], folder: Path) -> list[Path]:
    """Object files of C sources: in one call of the compiler, but zig keeps only one object of a call."""
    for group in [[source] for source in sources] if toolchain.is_zig else [sources]:
        toolchain.compile([*C_FLAGS, *toolchain.c_flags, f"-I{core_folder()}", "-c", *group], folder)
    return [folder / f"{Path(source).stem}.o" for source in sources]


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
    data = _link_shared(zig, target, [*sources, *kernels], folder)
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


def _bench_content(plan: Plan, golden: Golden | None, folder: Path) -> list[str]:
    """Writes data.S and content.c, which put weights, golden tensors and what is known of the operators into the bench
    program; returns their names."""
    inputs = golden.inputs if golden else tuple(np.zeros(t.shape, t.dtype) for t in plan.inputs)
    outputs = golden.outputs if golden else ()
    blobs = {"weights": plan.weights}
    blobs |= {f"input_{i}": np.ascontiguousarray(a).tobytes() for i, a in enumerate(inputs)}
    blobs |= {f"output_{i}": np.ascontiguousarray(a).tobytes() for i, a in enumerate(outputs)}
    modelled = model_operators(plan.calls, len(plan.weights), plan.arena_bytes)
    blobs["modelled"] = json.dumps(modelled.to_json()).encode()
    assembly = ['.section .rodata, "a"']
    for name, data in blobs.items():
        (folder / f"{name}.bin").write_bytes(data)
        assembly += [
            ".balign 64",
            f".globl subbyte_data_{name}",
            f"subbyte_data_{name}:",
            f'.incbin "{name}.bin"',
            ".byte 0",  # ends the text of `modelled`
        ]
    assembly += ['.section .note.GNU-stack, "", %progbits', ""]
    (folder / "data.S").write_text("\n".join(assembly))

    def table(kind: str, count: int) -> list[str]:
        listed = ", ".join(f"subbyte_data_{kind}_{i}" for i in range(count)) or "0"
        return [f"static const void *const {kind}s[] = {{{listed}}};"]

    content = ['#include "bench.h"', *(f"extern const unsigned char subbyte_data_{name}[];" for name in blobs)]
    content += table("input", len(inputs)) + table("output", len(outputs))
    content.append("static const subbyte_bench_operator operators[] = {")
    for call in plan.calls:
        texts = (call.kernel, call.activation, call.weights, call.fallback)
        listed = ", ".join("0" if text is None else c_string(text) for text in texts)
        content.append(f"    {{{listed}, INT64_C({int(call.macs)})}},")
    content += ["    {0, 0, 0, 0, 0}", "};"]  # an empty table is not C
    ties = golden.ties if golden and golden.ties else (0.0,) * len(plan.outputs)
    content.append(f"static const double ties[] = {{{', '.join(repr(float(tie)) for tie in ties)}}};")
    relative, absolute = (golden.relative, golden.absolute) if golden else (0.0, 0.0)
    values = (
        f"subbyte_data_weights, inputs, outputs, {{{float(relative)!r}, {float(absolute)!r}, {MOST_MOVED}}}, ties, "
        f"{int(bool(golden))}"
    )
    values += f", operators, (const char *)subbyte_data_modelled, {c_string(__version__)}"
    content.append(f"const subbyte_bench_content subbyte_bench_data = {{{values}}};\n")
    (folder / "content.c").write_text("\n".join(content))
    return ["content.c", "data.S"]


@functools.cache
def _bench_objects(toolchain: Toolchain) -> dict[str, bytes]:
    """The bench program's own object files by name: the same for every model, so compiled once. It calls the model and
    prints, so -O1 serves, and compiles in two thirds of the time."""
    with tempfile.TemporaryDirectory(prefix="subbyte-") as name:
        sources = [core_folder() / source for source in BENCH]
        toolchain.compile([*BENCH_FLAGS, "-O1", *toolchain.c_flags, f"-I{core_folder()}", "-c", *sources], Path(name))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def _bench(plan: Plan, target: Target, objects: list[Path], golden: Golden | None, folder: Path) -> bytes:
    """A static program; zig builds the C core anew, because its C library for static programs is another one."""
    toolchain = find_static_toolchain(target)
    sources: list[str | Path] = [*_bench_content(plan, golden, folder)]
    if toolchain.is_zig:  # which keeps object files itself
        sources += ["model.c", "get_model.c", *(core_folder() / name for name in (*CORE, *BENCH))]
        objects = [path for path in objects if path.name == "kernels.o"]
    else:
        for name, data in _bench_objects(toolchain).items():
            (folder / name).write_bytes(data)
            sources.append(name)
    link = ["-Wl,-z,noexecstack", "-Wl,--gc-sections", "-Wl,-s", "-Wl,--build-id=none", "-lm", "-lpthread"]
    toolchain.compile(
        [
            *(*BENCH_FLAGS, *toolchain.c_flags, *toolchain.static_flags, f"-I{core_folder()}"),
            *("-o", "bench", *sources, *objects, *link),
        ],
        folder,
    )
    return (folder / "bench").read_bytes()


def emit_library(plan: Plan, target: Target, golden: Golden | None = None) -> Emitted:
    """weights.bin, library.so, library.a and, for Linux, bench; raises CompileError or ToolchainError."""
    toolchain = find_toolchain(target)
    made = symbols(plan)
    kernels = compile_objects(made.wanted, target.tvm_target()) if made.wanted else None
    signatures = kernels.signatures if kernels else ()
    check_arguments(plan, made, signatures)
    with tempfile.TemporaryDirectory(prefix="subbyte-") as name:
        folder = Path(name)
        (folder / "model.c").write_text(model_c(plan, target, made, signatures))
        (folder / "get_model.c").write_text(_get_model_c(plan))
        sources = ["model.c", "get_model.c", *(str(core_folder() / part) for part in CORE)]
        objects = _compile(toolchain, sources, folder)
        if kernels:
            (folder / "kernels.o").write_bytes(kernels.code)
            objects.append(folder / "kernels.o")
        shared = _shared(toolchain, target, sources, objects, folder)
        members = {"weights.bin": plan.weights, "library.so": shared.data}
        toolchain.archive(folder / "library.a", objects)
        members["library.a"] = (folder / "library.a").read_bytes()
        if "linux" in target.triple:
            members["bench"] = _bench(plan, target, objects, golden, folder)
    tiles = tuple(signatures[index].tiles for index in made.of_call)
    return Emitted(
        *(members, tiles, workspace_bytes(plan, signatures)),
        compiler=shared.compiler,
        glibc=shared.glibc,
        notes=shared.notes,
    )
