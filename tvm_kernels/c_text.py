"""From the C that TVM writes to C that stands alone: no TVM headers, exact constants, what C has no operator for.

Importing this file teaches TVM's C code generator the population count.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.op import register_intrin_lowering

from subbyte.errors import CompileError

HEADERS = ("math", "stdbool", "stdint", "string")
# What C has no operator for. libgcc's population count is a table look-up for each byte, and newlib's nearbyintf a slow
# call; this rounds by adding 2^23, where the bits behind the point fall off, to nearest even as the processor does.
PRELUDE = """
static inline uint32_t subbyte_popcount(uint32_t x) {
  x -= x >> 1 & 0x55555555u;
  x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
  return ((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
}

static inline float subbyte_nearbyintf(float x) {
  const float whole = 8388608.0f;
  if (!(fabsf(x) < whole)) return x;
  return copysignf(x < 0.0f ? (x - whole) + whole : (x + whole) - whole, x);
}
"""


def _lower_popcount(call: Any) -> Any:
    word = call.args[0]
    if tvm.DataType(str(word.ty.dtype)).bits > 32:
        raise CompileError(f"popcount of {word.ty.dtype} has no C lowering; use words of 32 bits")
    counted = tirx.call_pure_extern("uint32", "subbyte_popcount", word.astype("uint32"))
    return counted.astype(str(call.ty.dtype))


register_intrin_lowering("tirx.popcount", target="c", f=_lower_popcount, level=99)


def _without_tvm(text: str) -> str:
    """TVM's C without its headers, export macros and library context."""
    text = re.sub(r'#ifdef __cplusplus\nextern "C"\n#endif\n', "", text)
    text = re.sub(r"^(//|#define TVM_EXPORTS|#include|void\* __tvm_ffi__library_ctx).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^TVM_DLL (uint32_t subbyte_popcount|float nearbyintf)\(.*\n", "", text, flags=re.MULTILINE)
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
        printed = exactly = abs(float(value.value))  # the sign is printed before it
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


def plain_c(text: str, module: Any) -> str:
    """TVM's C for `module`, made to stand alone; raises CompileError where it would need TVM at run time."""
    includes = "".join(f"#include <{header}.h>\n" for header in HEADERS)
    return f"{includes}{PRELUDE}\n{_exact_literals(_without_tvm(text), module)}"
