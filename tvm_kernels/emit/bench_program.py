"""The `bench` program of a Linux bundle: static, it measures without Python what the members beside it hold."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from subbyte import __version__
from subbyte.runtime.bundle import WEIGHTS
from subbyte.runtime.energy_model import model_operators
from subbyte.runtime.golden import MOST_MOVED
from subbyte.tvm_kernels.emit.core import C_FLAGS, CORE, MEASURE, cached_objects, core_folder
from subbyte.tvm_kernels.emit.emitted import Golden
from subbyte.tvm_kernels.emit.model_c import c_string
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.plan import Plan
from subbyte.tvm_kernels.toolchain import find_static_toolchain

PARTS = ("open", "golden", "report", "pin", "energy", "start")
BENCH = ("bench.c", *(f"bench_{part}.c" for part in PARTS))
BENCH_FLAGS = tuple(flag for flag in C_FLAGS if flag != "-fPIC")


def bench_program(plan: Plan, target: Target, objects: list[Path], golden: Golden | None, folder: Path) -> bytes:
    """A static program; zig builds the C core anew, because its C library for static programs is another one."""
    toolchain = find_static_toolchain(target)
    (folder / "content.c").write_text(_content(plan, golden))
    sources: list[str | Path] = ["content.c"]
    if toolchain.is_zig:  # which keeps object files itself
        sources += ["model.c", "get_model.c", *(core_folder() / name for name in (*CORE, *MEASURE, *BENCH))]
        objects = [path for path in objects if path.name == "kernels.o"]
    else:
        # It calls the model and prints, so -O1 serves, and compiles in two thirds of the time.
        for name, data in cached_objects(toolchain, BENCH, (*BENCH_FLAGS, "-O1")).items():
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


def _content(plan: Plan, golden: Golden | None) -> str:
    """Text of content.c: the members of the bundle that the program reads, their hashes, and the operators' facts."""
    members = golden.members() if golden else {}
    lines = ['#include "bench.h"', f"static const subbyte_bench_member weights = {_member(WEIGHTS, plan.weights, 0)};"]
    sides = (("input", golden.inputs), ("output", golden.outputs), ("state", golden.states)) if golden else ()
    for kind, tensors in sides:
        rows = [f"golden/{kind}_{i}.npy" for i in range(len(tensors))]
        cells = [
            _member(row, members[row], len(members[row]) - tensor.nbytes)
            for row, tensor in zip(rows, tensors, strict=True)
        ]
        lines.append(f"static const subbyte_bench_member {kind}s[] = {{{', '.join(cells) or '{0, 0, 0, 0}'}}};")
    lines.append("static const subbyte_bench_operator operators[] = {")
    for call in plan.calls:
        texts = (call.kernel, call.activation, call.weights, call.fallback)
        listed = ", ".join("0" if text is None else c_string(text) for text in texts)
        lines.append(f"    {{{listed}, INT64_C({int(call.macs)})}},")
    lines += ["    {0, 0, 0, 0, 0}", "};"]  # an empty table is not C
    ties = golden.ties if golden and golden.ties else (0.0,) * (len(plan.outputs) + len(plan.states))
    lines.append(f"static const double ties[] = {{{', '.join(repr(float(tie)) for tie in ties)}}};")
    relative, absolute = (golden.relative, golden.absolute) if golden else (0.0, 0.0)
    modelled = json.dumps(model_operators(plan.calls, len(plan.weights), plan.arena_bytes + plan.state_bytes).to_json())
    values = (
        f"&weights, {'inputs, outputs, states' if golden else '0, 0, 0'}, {golden.runs if golden else 1}, "
        f"{{{float(relative)!r}, {float(absolute)!r}, {MOST_MOVED}}}, ties, operators, modelled, "
        f"{c_string(__version__)}"
    )
    # Listed as characters: a string literal of its length is more than C99 promises to take.
    characters = ", ".join(map(str, modelled.encode("ascii")))
    lines.append(f"static const char modelled[] = {{{characters}, 0}};")
    lines.append(f"const subbyte_bench_content subbyte_bench_data = {{{values}}};\n")
    return "\n".join(lines)


def _member(name: str, data: bytes, header: int) -> str:
    return f'{{"{name}", {len(data)}u, {header}u, "{hashlib.sha256(data).hexdigest()}"}}'
