"""Writes model.c: the constant table that `subbyte_run` executes, and a trampoline for each kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from subbyte.errors import CompileError
from subbyte.runtime.features import TILE_FEATURES
from subbyte.runtime.manifest import MODEL_DTYPES
from subbyte.tvm_kernels.abi import CFunction
from subbyte.tvm_kernels.emit.names import names_of
from subbyte.tvm_kernels.emit.symbols import Symbols, scratch_offset, workspace_bytes
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.plan import Argument, Plan, Tensor


def c_string(text: str) -> str:
    """A C string literal."""
    out = []
    for byte in text.encode():
        char = chr(byte)
        plain = 32 <= byte < 127 and char not in '"\\?'
        out.append(char if plain else f"\\{byte:03o}")
    return '"' + "".join(out) + '"'


def _tensor_rows(kind: str, tensors: Sequence[Tensor]) -> list[str]:
    lines = []
    for i, tensor in enumerate(tensors):
        if tensor.dtype not in MODEL_DTYPES:
            raise CompileError(f"{kind} '{tensor.name}' is {tensor.dtype}; a model's may be {', '.join(MODEL_DTYPES)}")
        shape = ", ".join(str(n) for n in tensor.shape) or "1"
        lines.append(f"static const int64_t {kind}_{i}_shape[] = {{{shape}}};")
    lines.append(f"static const subbyte_tensor {kind}s[] = {{")
    for i, tensor in enumerate(tensors):
        nbytes = int(np.prod(tensor.shape, dtype=np.int64)) * MODEL_DTYPES[tensor.dtype]
        rank, dtype = len(tensor.shape), f"SUBBYTE_{tensor.dtype.upper()}"
        lines.append(f"    {{{c_string(tensor.name)}, {dtype}, {rank}, {kind}_{i}_shape, {nbytes}u}},")
    if not tensors:
        lines.append("    {0, 0, 0, 0, 0}")
    return [*lines, "};", ""]


def _argument(argument: Argument) -> str:
    return f"{{SUBBYTE_{argument.space.upper()}, {argument.offset}u}}"


def _states(plan: Plan) -> list[str]:
    """The table of states, which refers to state.c; nothing where there is none."""
    if not plan.states:
        return []
    lines = _tensor_rows("state", [state.tensor for state in plan.states])
    lines.append("static const subbyte_state states_of_model[] = {")
    for i, state in enumerate(plan.states):
        initial = "SUBBYTE_ZEROS" if state.initial is None else f"{state.initial}u"
        lines.append(f"    {{&states[{i}], {state.tensor.place.offset}u, {initial}, {state.next.offset}u}},")
    lines += ["};", "static const subbyte_states model_states = {"]
    lines.append(
        f"    {len(plan.states)}, states_of_model, {plan.state_bytes}u, subbyte_begin_state, subbyte_end_state"
    )
    return [*lines, "};", ""]


def model_c(plan: Plan, target: Target, made: Symbols, signatures: Sequence[CFunction]) -> str:
    """The text of model.c."""
    names = names_of(plan.name)
    scratch = Argument("workspace", scratch_offset(plan))
    needs = "SUBBYTE_NEEDS_TILES" if any(call.needs & TILE_FEATURES for call in plan.calls) else "0"
    asked = target.features if target.emitter.asks_cpu else ()
    features = c_string(" ".join(sorted(asked))) if asked else "0"
    lines = [
        f"/* A model for target {target.name}, written by subbyte: do not edit. */",
        '#include "subbyte.h"',
        "",
    ]
    for signature in signatures:
        lines += [signature.declaration(), signature.trampoline(), ""]
    lines += _tensor_rows("input", plan.inputs)
    lines += _tensor_rows("output", plan.outputs)
    lines += _states(plan)
    for i, (call, index) in enumerate(zip(plan.calls, made.of_call, strict=True)):
        arguments = [*call.arguments, *([scratch] if signatures[index].scratch else [])]
        listed = ", ".join(_argument(a) for a in arguments) or "{0, 0}"
        lines.append(f"static const subbyte_argument arguments_{i}[] = {{{listed}}};")
    lines += ["", "static const subbyte_operator operators[] = {"]
    for i, (call, index) in enumerate(zip(plan.calls, made.of_call, strict=True)):
        signature = signatures[index]
        count = len(call.arguments) + bool(signature.scratch)
        lines.append(
            f"    {{{c_string(call.name)}, run_{signature.symbol}, arguments_{i}, {count}, {signature.tiles}}},"
        )
    if not plan.calls:
        lines.append("    {0, 0, 0, 0, 0}")
    lines += [
        "};",
        "",
        "static const subbyte_model model = {",
        f"    SUBBYTE_ABI, {c_string(plan.name)}, {c_string(target.name)},",
        f"    {len(plan.inputs)}, {len(plan.outputs)}, {len(plan.calls)},",
        "    inputs, outputs, operators,",
        f"    {plan.arena_bytes}u, {workspace_bytes(plan, tuple(signatures))}u, {len(plan.weights)}u,",
        f"    {needs}, {features}, {'&model_states' if plan.states else '0'},",
        "};",
        "",
        f"const subbyte_model *{names.get_model}(void);",
        f"const subbyte_model *{names.get_model}(void) {{ return &model; }}",
        "",
    ]
    return "\n".join(lines)
