"""exp, erf, tanh and activations computed from them, in float32 TIR of any number of lanes, without calls to libm.

Coefficients are read from a constant buffer (`TABLE`), never immediates: the C printer loses digits of floats. Largest
errors against float64 (tests/kernels/test_epilogue.py): exp 2 ulp, tanh and sigmoid 3e-7, gelu 1e-6, silu 2e-6. All
propagate NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.tvm_kernels.kernels.code_generator import opaque, unfused
from subbyte.tvm_kernels.kernels.tir.extremes import at_least, at_most
from subbyte.tvm_kernels.kernels.tir.vectors import lanes_of, reinterpret, splat, vector_type

MAGIC = 12582912  # 1.5 x 2^23: float32 values near it are integers
_COEFFICIENTS: dict[str, tuple[float, ...]] = {
    "exp range": (-87.33654, 89.0),
    "log2 e": (1.44269504088896341,),
    # ln 2 in two parts: the product of an integer below 2^9 with the first is exact.
    "ln 2": (0.693359375, -2.12194440e-4),
    # Cephes expf, Moshier 1992.
    "exp": (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    # Rational minimax approximations of Eigen (generic_fast_erf_float, generic_fast_tanh_float).
    "erf numerator": (
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    ),
    "erf denominator": (
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    ),
    "tanh range": (7.90531110763549805,),
    "tanh numerator": (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ),
    "tanh denominator": (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
    "magic": (MAGIC,),
    "sqrt 1/2": (0.70710678118654752,),
    "1/6": (1 / 6,),
}

_START: dict[str, int] = {}
for _name in _COEFFICIENTS:
    _START[_name] = sum(len(_COEFFICIENTS[n]) for n in _START)
TABLE = np.array([value for values in _COEFFICIENTS.values() for value in values], np.float32)


def number(value: float, like: Any) -> Any:
    """A constant that seven digits represent exactly, in all lanes of a float32 expression."""
    return splat(T.float32(value), lanes_of(like))


class FloatFunctions:
    """Builds the functions from `table`, a float32 constant buffer holding `TABLE`."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._activations: dict[str, Callable[[Any], Any]] = {
            "relu": lambda x: at_least(number(0, x), x),
            "gelu": self.gelu,
            "sigmoid": self.sigmoid,
            "tanh": self.tanh,
            "silu": lambda x: x * self.sigmoid(x),
            "hardswish": lambda x: x * self.hardsigmoid(x),
            "hardsigmoid": self.hardsigmoid,
        }

    def activation(self, name: str, x: Any) -> Any:
        """The elementwise function of that name (operators.Activate)."""
        return self._activations[name](T.bind(x))

    def _coefficient(self, name: str, like: Any, index: int = 0) -> Any:
        return splat(self._table[_START[name] + index], lanes_of(like))

    def _polynomial(self, name: str, x: Any) -> Any:
        total = self._coefficient(name, x)
        for index in range(1, len(_COEFFICIENTS[name])):
            total = total * x + self._coefficient(name, x, index)
        return total

    def _clamp(self, x: Any, low: Any, high: Any) -> Any:
        return T.bind(at_most(high, at_least(low, x)))

    def exp(self, x: Any) -> Any:
        """e^x; x is clamped to -87.3, where the result is a normal float32, and 89, where it is infinite."""
        lanes = lanes_of(x)
        x = self._clamp(x, self._coefficient("exp range", x, 0), self._coefficient("exp range", x, 1))
        # Adding 1.5 x 2^23 rounds to the nearest integer, which is then in the lowest bits. Those of NaN are a valid
        # integer too, while converting NaN to an integer is undefined in C.
        magic = self._coefficient("magic", x)
        rounded = T.bind(opaque(x * self._coefficient("log2 e", x) + magic))
        n = T.bind(rounded - magic)
        r = x - n * self._coefficient("ln 2", x, 0)
        r = T.bind(r - n * self._coefficient("ln 2", x, 1))
        value = T.bind(self._polynomial("exp", r) * (r * r) + r + number(1, r))
        # 2^n in two factors: n may be 128, one more than the largest exponent.
        bits = reinterpret(vector_type("int32", lanes), rounded)
        integer = T.bind(bits - splat(IntImm("int32", int(np.float32(MAGIC).view(np.int32))), lanes))
        half = T.bind(T.shift_right(integer, splat(IntImm("int32", 1), lanes)))
        return value * self._power_of_two(half) * self._power_of_two(integer - half)

    def _power_of_two(self, n: Any) -> Any:
        lanes = lanes_of(n)
        exponent = T.Cast(vector_type("uint32", lanes), n + splat(IntImm("int32", 127), lanes))
        bits = T.shift_left(exponent, splat(T.uint32(23), lanes))
        return reinterpret(vector_type("float32", lanes), bits)

    def erf(self, x: Any) -> Any:
        """The error function."""
        x = self._clamp(x, number(-4, x), number(4, x))
        square = T.bind(x * x)
        numerator = self._polynomial("erf numerator", square)
        return x * numerator / self._polynomial("erf denominator", square)

    def tanh(self, x: Any) -> Any:
        """The hyperbolic tangent."""
        limit = self._coefficient("tanh range", x)
        x = self._clamp(x, number(0, x) - limit, limit)
        square = T.bind(x * x)
        numerator = self._polynomial("tanh numerator", square)
        return x * numerator / self._polynomial("tanh denominator", square)

    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + e^-x)."""
        return number(1, x) / (number(1, x) + self.exp(number(0, x) - x))

    def gelu(self, x: Any) -> Any:
        """x / 2 * (1 + erf(x / sqrt 2))."""
        return number(0.5, x) * x * (number(1, x) + self.erf(x * self._coefficient("sqrt 1/2", x)))

    def hardsigmoid(self, x: Any) -> Any:
        """min(max(x * (1/6) + 0.5, 0), 1), exactly as operators/activations.py: no fused multiply-add."""
        y = unfused(x * self._coefficient("1/6", x)) + number(0.5, x)
        return at_most(number(1, x), at_least(number(0, x), y))
