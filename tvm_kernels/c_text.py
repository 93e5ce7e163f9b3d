"""From TIR to self-contained C: correct min and max, no TVM headers, exact constants, functions from c_prelude.py.

Importing this file registers lowerings of population count and of fabs with TVM's C code generator.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call, TensorLoad
from tvm.tirx.op import register_intrin_lowering

from subbyte.errors import CompileError
from subbyte.tvm_kernels.c_prelude import GUARD, NUMBERS, has, prelude

HEADERS = ("math", "stdbool", "stdint", "string")


def _lower_popcount(call: Any) -> Any:
    word = call.args[0]
    if tvm.DataType(str(word.ty.dtype)).bits > 32:
        raise CompileError(f"popcount of {word.ty.dtype} has no C lowering; use words of 32 bits")
    counted = tirx.call_pure_extern("uint32", "subbyte_popcount", word.astype("uint32"))
    return counted.astype(str(call.ty.dtype))


def _lower_fabs(call: Any) -> Any:
    dtype = str(call.ty.dtype)
    return tirx.call_pure_extern(dtype, {"float32": "fabsf", "float64": "fabs"}[dtype], call.args[0])


register_intrin_lowering("tirx.popcount", target="c", f=_lower_popcount, level=99)
register_intrin_lowering("tirx.fabs", target="c", f=_lower_fabs, level=99)


def _reads(expression: Any) -> bool:
    """Whether two expressions with the same text may have different values: it loads, or calls a function."""
    found: list[Any] = []
    tvm_ffi.structural_walk(expression, ((TensorLoad, Call), found.append))
    return bool(found)


def _bound(loop: Any) -> Any:
    """A loop whose extent is read once, before it: C evaluates the condition in every iteration."""
    if not _reads(loop.extent):
        return loop
    extent = tirx.Var("extent", str(loop.extent.ty.dtype))
    again = tirx.For(loop.loop_var, loop.min, extent, loop.kind, loop.body, None, loop.annotations, loop.step)
    return tirx.SeqStmt([tirx.Bind(extent, loop.extent), again])


def printable(module: Any) -> Any:
    """The same lowered functions, in statements and expressions that TVM's C printer prints correctly.

    The printer binds both operands of a min or max to variables first, and reuses such a variable for every operand of
    the same text: also after a store to the buffer that it was loaded from, and in loops. So min and max become calls,
    which are printed in place. Bits of floats are read by a function. A function around each float product keeps the
    C compiler from fusing it with an addition. Raises CompileError for a type without such a C function.
    """
    missing: list[str] = []  # TVM does not propagate the type of an exception in a callback

    def function_of(name: str, dtype: str) -> str:
        function = f"subbyte_{name}_{dtype}"
        if not has(function):
            missing.append(f"{name} of {dtype}")
        return function

    def called(name: str) -> Callable[[Any], Any]:
        def call(expression: Any) -> Any:
            if not _reads(expression):
                return expression
            dtype = str(expression.ty.dtype)
            return tirx.call_pure_extern(dtype, function_of(name, dtype), expression.a, expression.b)

        return call

    def unfused(product: Any) -> Any:
        dtype = str(product.ty.dtype)
        if "float" not in dtype:
            return product
        return tirx.call_pure_extern(dtype, function_of("unfused", dtype), product)

    def bits(call: Any) -> Any:
        """A cast to bits and back, which hid a value from TVM's simplifier, is removed: C compilers do not simplify so.
        For others TVM prints a cast of pointers, which breaks C's aliasing rules."""
        if call.op != tvm.ir.Op.get("tirx.reinterpret"):
            return call
        (value,) = call.args
        source, target = str(value.ty.dtype), str(call.ty.dtype)
        called = isinstance(value, Call) and value.op == tvm.ir.Op.get("tirx.call_pure_extern")
        if called and str(value.args[0].value) == f"subbyte_{target}_as_{source}":
            return value.args[1]
        function = f"subbyte_{source}_as_{target}"
        return tirx.call_pure_extern(target, function, value) if has(function) else call

    rows = ((tirx.Min, called("min")), (tirx.Max, called("max")), (tirx.For, _bound), (Call, bits))
    products = ((tirx.Mul, unfused),)  # afterwards: with such a call in it, a min or max would count as one that reads
    made = {
        var: tvm_ffi.structural_map(tvm_ffi.structural_map(function, rows), products)
        for var, function in module.functions.items()
    }
    if missing:
        raise CompileError(f"C sources have no {missing[0]}; cast to a type that c_prelude.py has one for")
    return tvm.IRModule(made)


def _without_tvm(text: str) -> str:
    """TVM's C without its headers, export macros and library context."""
    text = re.sub(r'#ifdef __cplusplus\nextern "C"\n#endif\n', "", text)
    text = re.sub(r"^(//|#define TVM_EXPORTS|#include|void\* __tvm_ffi__library_ctx).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^TVM_DLL (\w+ subbyte_\w+|float nearbyintf)\(.*\);\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\bnearbyintf\(", "subbyte_nearbyintf(", text)
    text = text.replace("TVM_DLL ", "")
    if "TVM" in text.upper():
        line = next(line for line in text.splitlines() if "TVM" in line.upper())
        raise CompileError(f"C code for a microcontroller would need TVM: {line.strip()}")
    return text


def _exact_literals(text: str, module: Any) -> str:
    """TVM prints floats with seven digits: put hexadecimal literals in their place, which are exact."""
    exact: dict[str, set[str]] = {}

    def note(value: Any) -> None:
        printed = exactly = abs(float(value.value))  # its sign is printed separately
        suffix = "" if str(value.ty.dtype) == "float64" else "f"
        if suffix:
            exactly = float(np.float32(printed))
        if math.isfinite(printed):
            exact.setdefault(f"{printed:e}{suffix}", set()).add(exactly.hex() + suffix)

    tvm_ffi.structural_walk(module, (tirx.FloatImm, note))

    def replace(match: re.Match[str]) -> str:
        found = exact.get(match.group(0), set())
        if len(found) != 1:
            raise CompileError(f"two constants print as {match.group(0)} in C; a kernel must pass them as buffers")
        return next(iter(found))

    text = re.sub(r"\binff?\b", "INFINITY", text)
    return re.sub(r"(?<![\w.])\d+\.\d+e[+-]\d+f?\b", replace, text)


def _restricted(text: str, module: Any) -> str:
    """Adds `restrict` to pointers of functions whose arguments do not overlap: constants then stay in registers."""
    distinct = {str(var.name_hint) for var, function in module.functions.items() if "tirx.noalias" in function.attrs}

    def replace(match: re.Match[str]) -> str:
        if match.group(1) not in distinct:
            return match.group(0)
        return match.group(0).replace("* ", "* restrict ")

    return re.sub(r"^int32_t (\w+)\(.*\) \{$", replace, text, flags=re.MULTILINE)


# A view of a buffer as another type: C may assume that it does not overlap the buffer, unless its type says otherwise.
_VIEW = re.compile(r"\(\((\w+)\*\)(\w+)\)\[")
_VIEWS = {
    number: f"typedef {number} __attribute__((may_alias)) subbyte_{number.removesuffix('_t')}_view;\n"
    for number in dict.fromkeys(NUMBERS.values())
}


def _views(text: str) -> str:
    """Views of buffers through types that may overlap others; a pointer's alignment is the plan's promise, not C's."""
    found = {match.group(1) for match in _VIEW.finditer(text)}
    if found - _VIEWS.keys():
        raise CompileError(
            f"C sources have no view of a buffer as {min(found - _VIEWS.keys())}; c_prelude.py lists them"
        )

    def replace(match: re.Match[str]) -> str:
        return f"((subbyte_{match.group(1).removesuffix('_t')}_view*)(void*){match.group(2)})["

    return "".join(_VIEWS[number] for number in sorted(found)) + _VIEW.sub(replace, text)


_BINDING = re.compile(r"^ +\w+ (\w+) = .*;\n", flags=re.MULTILINE)
_FUNCTION = re.compile(r"^(int32_t \w+\(([^\n]*)\)) \{\n(.*?)^\}\n", flags=re.MULTILINE | re.DOTALL)


def _unused(match: re.Match[str]) -> str:
    """A function after its prototype, without unused bindings; unused parameters are cast to void."""
    head, parameters, body = match.groups()
    while True:
        counts = Counter(re.findall(r"\b[A-Za-z_]\w*", body))
        idle = {name for name in _BINDING.findall(body) if counts[name] == 1}
        if not idle:
            break
        body = _BINDING.sub(lambda binding, idle=idle: "" if binding[1] in idle else binding[0], body)
    names = [parameter.split()[-1] for parameter in parameters.split(", ")]
    unread = "".join(f"  (void){name};\n" for name in names if not counts[name])
    return f"{head};\n{head} {{\n{unread}{body}}}\n"


def plain_c(text: str, module: Any) -> str:
    """Self-contained C from TVM's C for `module`; raises CompileError where it would need TVM at run time."""
    includes = "".join(f"#include <{header}.h>\n" for header in HEADERS)
    body = _FUNCTION.sub(_unused, _restricted(_exact_literals(_without_tvm(text), module), module))
    return f"{includes}{GUARD}{prelude(body)}\n{_views(body)}"
