"""Conversions of float16, represented by its bits, with arithmetic that every target supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import te

from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.kernels.tir.vectors import reinterpret
from subbyte.tvm_kernels.relax_converters.converter import converter

OUT_ELEMENTWISE = 4  # TVM's kOutEWiseFusable: fused with operators after it, not with those before it or with another


def _float(bits: Any) -> Any:
    return reinterpret("float32", bits)


def _word(value: int) -> Any:
    return tvm.tirx.const(value, "uint32")


def _once(dtype: str, value: Any, of: Callable[[Any], Any]) -> Any:
    """`of(value)`, in which the value is computed once: TVM repeats an expression at each use."""
    name = tvm.tirx.Var("once", dtype)
    return tvm.tirx.Let(name, value, of(name))


@converter(INTERNAL, "ToFloat16")
def to_float16(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """float32 to the bits of the nearest float16, ties to even; infinity from 65520 on."""

    def half(bits: Any) -> Any:
        size = bits & _word(0x7FFFFFFF)
        odd = (size >> _word(13)) & _word(1)
        normal = (size - _word(0x38000000) + _word(0xFFF) + odd) >> _word(13)
        # Below 2^-14 float16 has a spacing of 2^-24, to which float32 rounds near 0.5.
        small = reinterpret("uint32", _float(size) + tvm.tirx.const(0.5, "float32")) - _word(0x3F000000)
        finite = tvm.tirx.Select(size < _word(0x38800000), small, normal)
        finite = tvm.tirx.Select(size >= _word(0x477FF000), _word(0x7C00), finite)
        number = tvm.tirx.Select(size > _word(0x7F800000), _word(0x7E00), finite)
        return (number | ((bits >> _word(16)) & _word(0x8000))).astype("uint16")

    def compute(x: Any) -> Any:
        def element(*at: Any) -> Any:
            return _once("uint32", reinterpret("uint32", x(*at)), half)

        return te.compute(x.shape, element, name="to_float16")

    # One in a kernel: the time of TVM's passes grows exponentially with a chain of them.
    return builder.call_te(
        compute, inputs[0], primfunc_name_hint="to_float16", primfunc_attrs={"op_pattern": OUT_ELEMENTWISE}
    )


@converter(INTERNAL, "FromFloat16")
def from_float16(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """float32 of the bits of float16: exact."""

    def whole(wide: Any) -> Any:
        size, sign = wide & _word(0x7FFF), (wide & _word(0x8000)) << _word(16)
        normal = (size << _word(13)) + _word(0x38000000)
        small = reinterpret("uint32", size.astype("float32") * tvm.tirx.const(2.0**-24, "float32"))
        number = tvm.tirx.Select(size < _word(0x400), small, normal)
        number = tvm.tirx.Select(size >= _word(0x7C00), (size << _word(13)) | _word(0x7F800000), number)
        return _float(number | sign)

    def compute(bits: Any) -> Any:
        return te.compute(
            bits.shape, lambda *at: _once("uint32", bits(*at).astype("uint32"), whole), name="from_float16"
        )

    return builder.call_te(compute, inputs[0], primfunc_name_hint="from_float16")
