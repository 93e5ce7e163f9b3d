"""Conversion of bits, parts of a tensor, and Concat and Silu of tensors that no kernel supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, te

from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.relax_converters.converter import converter


@converter(INTERNAL, "UnpackBits")
def unpack_bits(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Bits uint32 [..., words] to float32 -1 and +1 [..., channels]."""
    channels = int(attributes["channels"])

    def compute(words: Any) -> Any:
        def element(*at: Any) -> Any:
            word = words(*at[:-1], at[-1] // 32)
            bit = (word >> (at[-1] % 32).astype("uint32")) & tvm.tirx.const(1, "uint32")
            return bit.astype("float32") * tvm.tirx.const(2, "float32") - tvm.tirx.const(1, "float32")

        return te.compute([*words.shape[:-1], channels], element, name="values")

    return builder.call_te(compute, inputs[0], primfunc_name_hint="unpack_bits")


@converter(INTERNAL, "Silu")
def silu(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """x * sigmoid(x) of a scalar, which no kernel supports."""
    return relax.op.nn.silu(inputs[0])


@converter(INTERNAL, "Part")
def part(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """A contiguous range of the flat input, in the output's shape."""
    shape, start = list(attributes["shape"]), int(attributes["start"])

    def compute(whole: Any) -> Any:
        def element(*at: Any) -> Any:
            place = te.const(start, "int64")
            stride = 1
            for index, size in zip(reversed(at), reversed(shape), strict=True):
                place = place + index * stride
                stride *= size
            indices = []
            for size in reversed([int(d) for d in whole.shape]):
                indices.append(place % size)
                place = place // size
            return whole(*reversed(indices))

        return te.compute(shape, element, name="part")

    return builder.call_te(compute, inputs[0], primfunc_name_hint="part")


@converter("", "Concat")
def concat(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Inputs without elements are left out: with one, TVM computes a wrong length of the axis."""
    parts = [part for part in inputs if all(int(size) for size in part.ty.shape)] or list(inputs[:1])
    return parts[0] if len(parts) == 1 else relax.op.concat(parts, axis=int(attributes["axis"]))
