"""What the emitter `c_source` writes: the model as C99: no heap, no threads, no libc beyond string.h and math.h.

Kernels from TVM's C code generator, the plan's table, weights as a const array, the plan interpreter; and an example
program with start-up code and a linker script that checks itself against the golden outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from subbyte.errors import ToolchainError
from subbyte.runtime.golden import MOST_MOVED
from subbyte.tvm_kernels.emit.board_memory import Linked, buffers_bytes, check_fit, example_notes, linked_memory
from subbyte.tvm_kernels.emit.core import core_folder
from subbyte.tvm_kernels.emit.emitted import Array, Emitted, Golden
from subbyte.tvm_kernels.emit.names import names_of
from subbyte.tvm_kernels.emit.program import generate
from subbyte.tvm_kernels.machines.architecture import beside
from subbyte.tvm_kernels.machines.makefile import makefile
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.memory import ALIGNMENT
from subbyte.tvm_kernels.plan import Plan
from subbyte.tvm_kernels.toolchain import find_toolchain, run

HEADERS = ("subbyte.h", "internal.h", "cpu_features.h", "elements.h", "compare.h", "console.h")
MODEL_FILES = ("kernels.c", "model.c", "weights.c", "run.c", "needs.c")
STATE_FILE = "state.c"  # of a model with state
TEXT_FILE = "failure.c"  # failures in words: only of a program that asks for them
COPIED = (*HEADERS, "run.c", "needs.c", TEXT_FILE)
EXAMPLE_FILES = ("golden.c", "example.c", TEXT_FILE)
# Contraction to fused multiply-add would change bits; views of workspaces have other types than their buffers. Against
# -Os, -O2 takes 40% fewer instructions for 2% more flash (ds_cnn, ternary, gcc 12, cortex-m4: `make run`).
C_FLAGS = ("-std=c99", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-ffunction-sections", "-fdata-sections")
WORDS_PER_LINE = 12


def c_array(name: str, data: bytes) -> str:
    """A const array of 32-bit words, aligned to 64 bytes; the last word is filled up with zeros."""
    padded = data + bytes(-len(data) % 4) or bytes(4)
    words = [f"0x{word:x}u" for word in np.frombuffer(padded, "<u4").tolist()]
    lines = [", ".join(words[i : i + WORDS_PER_LINE]) for i in range(0, len(words), WORDS_PER_LINE)]
    body = ",\n  ".join(lines)
    return f"const uint32_t {name}[{len(words)}] __attribute__((aligned({ALIGNMENT}))) = {{\n  {body}}};\n"


BYTE_ORDER = """#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the words below are in little-endian order"
#endif
"""


def _weights_c(plan: Plan) -> str:
    return f'#include "model.h"\n\n{BYTE_ORDER}\n' + c_array(names_of(plan.name).symbol("weights"), plan.weights)


def _golden_c(plan: Plan, golden: Golden | None) -> str:
    inputs: Sequence[Array] = golden.inputs if golden else [np.zeros(t.shape, t.dtype) for t in plan.inputs]
    outputs: Sequence[Array] = golden.outputs if golden else []
    symbol = names_of(plan.name).symbol
    parts = ['#include "model.h"\n\n', BYTE_ORDER]
    states: Sequence[Array] = golden.states if golden else []
    for kind, arrays in (("input", inputs), ("output", outputs), ("state", states)):
        parts += ["static " + c_array(f"{kind}_{i}", np.ascontiguousarray(a).tobytes()) for i, a in enumerate(arrays)]
    for kind, have, tensors in (
        ("input", len(inputs), plan.inputs),
        ("output", len(outputs), plan.outputs),
        ("state", len(states), plan.states),
    ):
        listed = ", ".join(f"{kind}_{i}" if i < have else "0" for i in range(len(tensors))) or "0"
        parts.append(f"const void *const {symbol(f'golden_{kind}s')}[] = {{{listed}}};\n")
    ties = golden.ties if golden and golden.ties else (0.0,) * (len(plan.outputs) + len(plan.states))
    parts.append(f"const double {symbol('golden_ties')}[] = {{{', '.join(repr(float(tie)) for tie in ties)}}};\n")
    return "".join(parts)


def _model_h(plan: Plan, workspace: int, golden: Golden | None) -> str:
    relative, absolute = (golden.relative, golden.absolute) if golden else (0.0, 0.0)
    names = names_of(plan.name)
    macro, symbol = names.macro, names.symbol
    return f"""/* The memory this model needs and its constants. */
#ifndef {symbol("MODEL_H")}
#define {symbol("MODEL_H")}

#include "subbyte.h"

#ifdef {macro("ARENA_BYTES")}
#error "macros are in capitals: another model's name is '{names.model}' but for case; compile with another --name"
#endif

#define {macro("ARENA_BYTES")} {plan.arena_bytes}
#define {macro("WORKSPACE_BYTES")} {workspace}
#define {macro("INPUT_COUNT")} {len(plan.inputs)}
#define {macro("OUTPUT_COUNT")} {len(plan.outputs)}
#define {macro("INPUT_BYTES")} {buffers_bytes(plan.inputs)} /* of all inputs, each aligned */
#define {macro("OUTPUT_BYTES")} {buffers_bytes(plan.outputs)} /* of all outputs, each aligned */
#define {macro("STATE_BYTES")} {plan.state_bytes} /* of what lives between runs; 0: nothing does */
#define {macro("STATE_COUNT")} {len(plan.states)}
#define {macro("GOLDEN_RUNS")} {golden.runs if golden else 1} /* one after the other, from the initial state on */

/* A float output may differ from its golden value by relative * |golden| + absolute * max(1, the largest finite
 * |golden| of the output); integers by nothing. Either may differ by {symbol("golden_ties")}[output], where a rounding
 * tie may move it: of the integers of an output at most one in so many, or one. */
#define {macro("GOLDEN_RELATIVE")} {float(relative)!r}
#define {macro("GOLDEN_ABSOLUTE")} {float(absolute)!r}
#define {macro("GOLDEN_MOST_MOVED")} {MOST_MOVED}

/* The model itself, and its constants. */
const subbyte_model *{names.get_model}(void);
extern const uint32_t {symbol("weights")}[];

/* Of golden.c: what example.c runs and compares with. An output without a golden value is null. */
extern const void *const {symbol("golden_inputs")}[];
extern const void *const {symbol("golden_outputs")}[];
extern const void *const {symbol("golden_states")}[]; /* after the last run */
extern const double {symbol("golden_ties")}[];

#endif
"""


def model_files(plan: Plan) -> tuple[str, ...]:
    """The C files that a program needs to run this model."""
    return (*MODEL_FILES, STATE_FILE) if plan.states else MODEL_FILES


def _sizes(plan: Plan, files: dict[str, bytes], target: Target) -> tuple[dict[str, int], Linked | None]:
    """Bytes of the model by section, and the memory of its example on the board; nothing without a cross-compiler."""
    try:
        toolchain = find_toolchain(target)
    except ToolchainError:
        return {}, None
    if toolchain.is_zig:
        return {}, None
    compiled = model_files(plan)
    with tempfile.TemporaryDirectory(prefix="subbyte-") as name:
        folder = Path(name)
        for member, data in files.items():
            (folder / Path(member).name).write_bytes(data)
        toolchain.compile([*toolchain.c_flags, *C_FLAGS, "-c", *compiled], folder)
        size = beside(toolchain.compiler[0], "size")
        objects = [Path(source).stem + ".o" for source in compiled]
        rows = [line.split() for line in run([size, *objects], folder).splitlines()[1:]]
        linked = None
        if target.board is not None:
            linked = linked_memory(target.board, toolchain, [*C_FLAGS, *objects, *EXAMPLE_FILES], folder)
    total = {key: sum(int(row[i]) for row in rows) for i, key in enumerate(("text", "data", "bss"))}
    weights = next(row for row in rows if row[-1].startswith("weights"))
    return {**total, "weights": int(weights[0])}, linked


def emit_source(plan: Plan, target: Target, golden: Golden | None = None) -> Emitted:
    """weights.bin and source/*: raises CompileError for a kernel that cannot be C, or a model that is too large."""
    check_fit(plan, target)
    program = generate(plan, target)
    texts = {
        "model.c": program.model_c,
        "model.h": _model_h(plan, program.workspace_bytes, golden),
        "weights.c": _weights_c(plan),
        "golden.c": _golden_c(plan, golden),
        "Makefile": makefile(target, C_FLAGS, [*model_files(plan), *EXAMPLE_FILES]),
    }
    files = {f"source/{name}": text.encode() for name, text in texts.items()}
    files["source/kernels.c"] = program.kernels
    files |= {
        f"source/{name}": (core_folder() / name).read_bytes()
        for name in (*COPIED, *model_files(plan)[len(MODEL_FILES) :])
    }
    if target.board is not None:
        files |= {f"source/{name}": data for name, data in target.board.sources().items()}
    files["source/example.c"] = names_of(plan.name).in_example((core_folder() / "example.c").read_text()).encode()
    sizes, linked = _sizes(plan, files, target)
    ram = linked.ram if linked else None
    if sizes:
        check_fit(plan, target, program.workspace_bytes, ram, sizes["text"] + sizes["data"])
    members = {"weights.bin": plan.weights, **files}
    notes = example_notes(target.board, linked)
    return Emitted(members, program.tiles, program.workspace_bytes, sizes, ram, notes=notes)
