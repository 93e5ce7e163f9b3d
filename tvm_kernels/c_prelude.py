"""C functions for operations without an operator in C: each is written before the kernels of a file that calls it.

Kernels call them with `tirx.call_pure_extern(dtype, "subbyte_...", ...)`. Where a CPU has an instruction for one (Arm's
DSP extension, Arm's floating-point unit) the function is that instruction; else plain C with the same result, so that
the same source gives the same bits on every CPU. To add one: a row below.
"""

from __future__ import annotations

import re

from subbyte.runtime.features import FEATURES

# libgcc's population count is a table look-up for each byte.
_POPCOUNT = """
static inline uint32_t subbyte_popcount(uint32_t x) {
  x -= x >> 1 & 0x55555555u;
  x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
  return ((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
}
"""

# Written first: options that would change the bits of a float are an error, or are disabled by pragmas. clang has no
# macro for -freciprocal-math and -fno-signed-zeros; where it has no float_control (32-bit Arm), the sign of a zero may
# still be lost.
GUARD = """
#include <float.h>
#if FLT_EVAL_METHOD != 0
#error "floats are evaluated in a wider type, which changes bits: compile for SSE2 (-mfpmath=sse -msse2), not for x87"
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || \\
    defined(__NO_SIGNED_ZEROS__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#error "-ffast-math, -Ofast and the options that they imply change bits: compile without them"
#endif
#if defined(__clang__)
#if defined(__x86_64__) || defined(__aarch64__) || defined(__riscv)
#pragma float_control(precise, on)
#endif
#pragma clang fp contract(off) reassociate(off)
#if __clang_major__ >= 18
#pragma clang fp reciprocal(off)
#endif
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
"""
# The same value, opaque to the compiler: no option makes it fold an addition and a subtraction that round.
_OPAQUE = """
static inline __attribute__((unused)) float subbyte_opaque(float x) {
#if defined(__GNUC__) && defined(__arm__) && defined(__ARM_FP) && (__ARM_FP & 4) && !defined(__SOFTFP__)
  __asm__("" : "+t"(x));
#elif defined(__GNUC__) && defined(__aarch64__)
  __asm__("" : "+w"(x));
#elif defined(__GNUC__) && defined(__SSE__)
  __asm__("" : "+x"(x));
#elif defined(__GNUC__) && defined(__riscv_flen)
  __asm__("" : "+f"(x));
#else
  volatile float y = x;
  x = y;
#endif
  return x;
}
"""

# A product that is not fused with an addition (c_text.py applies it to every product). gcc respects the pragma above;
# clang's -ffp-contract=fast, for which there is no macro, overrides it. An empty asm costs no instruction, but prevents
# vectorization: it is used only where clang could fuse. Doubles are rare, and go through memory.
_UNFUSED = {
    f"subbyte_unfused_{dtype}": f"""
#if defined(__clang__) && (defined(__FMA__) || defined(__FMA4__) || defined(__FP_FAST_FMAF) || \\
                           defined(__ARM_FEATURE_FMA) || defined(__riscv_flen))
{fenced}
#else
#define subbyte_unfused_{dtype}(product) (product)
#endif
"""
    for dtype, fenced in (
        ("float32", "#define subbyte_unfused_float32(product) subbyte_opaque(product)"),
        (
            "float64",
            "static inline double subbyte_unfused_float64(double x) {\n  volatile double y = x;\n  return y;\n}",
        ),
    )
}

# newlib's nearbyintf is a slow call; this adds 2^23, which rounds the fraction to nearest even.
_NEARBYINTF = """
static inline float subbyte_nearbyintf(float x) {
  const float whole = 8388608.0f;
  if (!(fabsf(x) < whole)) return x;
  return copysignf(x < 0.0f ? subbyte_opaque(x - whole) + whole : subbyte_opaque(x + whole) - whole, x);
}
"""

# The nearest integer, ties to even, to be clipped afterwards to a range within +-2^22: larger values saturate, there or
# at 2^31, and NaN gives the lowest integer. VCVTR, which converts NaN to 0, rounds so in the processor's mode after
# reset; C has no expression that compiles to it. subbyte_rint_number is for what cannot be NaN.
_RINT = {
    f"subbyte_rint{suffix}": f"""
static inline int32_t subbyte_rint{suffix}(float x) {{
#if defined(__GNUC__) && defined(__arm__) && defined(__ARM_FP) && (__ARM_FP & 4) && !defined(__SOFTFP__)
  int32_t nearest;{nan}
  __asm__("vcvtr.s32.f32 %0, %0" : "+t"(x));
  memcpy(&nearest, &x, 4);
  return nearest;
#else
  const float limit = 4194304.0f;
  x = x > -limit ? x : -limit;
  x = x < limit ? x : limit;
  return (int32_t)(subbyte_opaque(x + 12582912.0f) - 12582912.0f);
#endif
}}
"""
    for suffix, nan in (("", "\n  if (x != x) x = -4194304.0f;"), ("_number", ""))
}


def _dsp(name: str, arguments: str, intrinsic: str, plain: str, returns: str = "uint32_t") -> str:
    return f"""
static inline {returns} subbyte_{name}({arguments}) {{
#ifdef SUBBYTE_DSP
  return {intrinsic};
#else
  return {plain};
#endif
}}
"""


# Words of two int16 halves. smlad: both products of halves added to a sum. Tiles of kernels take all registers of Thumb
# in the order in which they are written: where gcc schedules before it assigns registers, it spills in their loops
# (ds_cnn int8 by gcc 12: 523,040 instructions, not 489,600).
_DSP_MACRO = FEATURES["dsp"].macro
_ACLE = f"""
#if defined({_DSP_MACRO}) && {_DSP_MACRO} && defined(__ARM_FEATURE_SIMD32)
#define SUBBYTE_DSP
#include <arm_acle.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns", "ira-loop-pressure")
#endif
#endif
"""
_DSP = {
    "subbyte_smlad": _dsp(
        "smlad",
        "uint32_t a, uint32_t b, int32_t sum",
        "__smlad((int16x2_t)a, (int16x2_t)b, sum)",
        "sum + (int16_t)a * (int16_t)b + (int16_t)(a >> 16) * (int16_t)(b >> 16)",
        "int32_t",
    ),
    "subbyte_smlabb": _dsp(
        "smlabb",
        "uint32_t a, uint32_t b, int32_t sum",
        "__smlabb((int32_t)a, (int32_t)b, sum)",
        "sum + (int16_t)a * (int16_t)b",
        "int32_t",
    ),
    "subbyte_smlatt": _dsp(
        "smlatt",
        "uint32_t a, uint32_t b, int32_t sum",
        "__smlatt((int32_t)a, (int32_t)b, sum)",
        "sum + (int16_t)(a >> 16) * (int16_t)(b >> 16)",
        "int32_t",
    ),
    "subbyte_ssub16": _dsp(
        "ssub16",
        "uint32_t a, uint32_t b",
        "(uint32_t)__ssub16((int16x2_t)a, (int16x2_t)b)",
        "((a - b) & 0xffffu) | (((a >> 16) - (b >> 16)) << 16)",
    ),
    # Bytes 1 and 3 of a word, as halves. There is no intrinsic with the rotation; GCC would shift and mask.
    "subbyte_odd_bytes": """
static inline uint32_t subbyte_odd_bytes(uint32_t a) {
#ifdef SUBBYTE_DSP
  uint32_t halves;
  __asm__("uxtb16 %0, %1, ror #8" : "=r"(halves) : "r"(a));
  return halves;
#else
  return a >> 8 & 0x00ff00ffu;
#endif
}
""",
    # Signed bytes 0 and 2 of a word, as halves; shift right by 8 first for bytes 1 and 3.
    "subbyte_sxtb16": _dsp(
        "sxtb16",
        "uint32_t a",
        "(uint32_t)__sxtb16((int8x4_t)a)",
        "(uint32_t)(uint16_t)(int8_t)a | (uint32_t)(int8_t)(a >> 16) << 16",
    ),
}
# TVM's C printer would bind loads under min and max, once for each distinct text of an expression (c_text.py).
NUMBERS = {
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{"bool": "uint8_t", "float32": "float", "float64": "double"},
}
_SMALLER_AND_LARGER = {
    f"subbyte_{name}_{dtype}": f"""
static inline {number} subbyte_{name}_{dtype}({number} a, {number} b) {{
  return a {sign} b ? a : b;
}}
"""
    for name, sign in (("min", "<"), ("max", ">"))
    for dtype, number in NUMBERS.items()
}
_AS_BITS = {
    f"subbyte_{source}_as_{target}": f"""
static inline {NUMBERS[target]} subbyte_{source}_as_{target}({NUMBERS[source]} x) {{
  {NUMBERS[target]} y;
  memcpy(&y, &x, sizeof y);
  return y;
}}
"""
    for pair in (("float32", "uint32"), ("float32", "int32"), ("float64", "uint64"))
    for source, target in (pair, pair[::-1])
}
_FUNCTIONS = {
    **_AS_BITS,
    **_SMALLER_AND_LARGER,
    "subbyte_popcount": _POPCOUNT,
    "subbyte_opaque": _OPAQUE,
    **_UNFUSED,
    "subbyte_nearbyintf": _NEARBYINTF,
    **_RINT,
    **_DSP,
}


def has(name: str) -> bool:
    """Whether there is a function of that name."""
    return name in _FUNCTIONS


def prelude(body: str) -> str:
    """The functions that `body`, C text, calls."""
    called = set(re.findall(r"\bsubbyte_\w+(?=\()", body))
    if called & {"subbyte_nearbyintf", *_RINT, "subbyte_unfused_float32"}:
        called.add("subbyte_opaque")
    head = _ACLE if called & _DSP.keys() else ""
    return head + "".join(text for name, text in _FUNCTIONS.items() if name in called)
