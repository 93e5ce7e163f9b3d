"""Products: integers added up exactly in int32, or floats; then an epilogue in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from subbyte.formats import LowBitTensor, PerGroup
from subbyte.formats.reference import check_accumulator
from subbyte.tvm_kernels.operators.epilogue import Epilogue, ToBits
from subbyte.tvm_kernels.operators.geometry import Conv2d, MatMul
from subbyte.tvm_kernels.operators.operands import Array, Bits, Codes, Tensors, weight_levels
from subbyte.tvm_kernels.operators.operator import Facts, Fused, Operator


@dataclass(frozen=True, eq=False)
class QuantizedProduct(Fused):
    """Integer matrix product or convolution of codes or bits with low-bit weights.

    Weight shape: MatMul [columns, depth]; Conv2d [out_channels, kernel_h, kernel_w, channels / groups]. With weights by
    group the int32 sum of each group times its float32 scale is added to a float32 that starts at +0, in the order of
    the groups; otherwise all scales are in the epilogue (the weight's own `scale` is ignored here). Padded places hold
    level 0 for codes, +1 for bits.

    Codes, bits and float32 results are equal bit for bit in every kernel if the epilogue has no gelu, sigmoid, tanh or
    silu.
    """

    geometry: MatMul | Conv2d
    activation: Codes | Bits
    weight: LowBitTensor
    epilogue: Epilogue
    inputs = 1

    @property
    def macs(self) -> int:
        return self.geometry.macs

    def facts(self) -> Facts:
        weight = self.weight
        return Facts(self.activation.format, weight.format.name, float(weight.bits_per_weight), int(weight.nbytes))

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        if not isinstance(self.weight.granularity, PerGroup):
            return self.epilogue.reference(self.accumulators(inputs[0]), tensors)
        left, right = self._operands(inputs[0])
        groups, size = left.shape[0], self.weight.granularity.size
        total = np.zeros((groups, left.shape[1], right.shape[1]), np.float32)
        scale = self.weight.scale.reshape(groups, right.shape[1], -1)
        for index, start in enumerate(range(0, self.geometry.depth, size)):
            part = slice(start, start + size)
            sums = np.matmul(left[..., part], right[..., part].swapaxes(1, 2)).astype(np.float32)
            total = total + sums * scale[:, None, :, index]
        return self.epilogue.reference(self.geometry.output(total), tensors)

    def accumulators(self, activation: Array) -> npt.NDArray[np.int32]:
        """The int32 sums over the whole depth, in the shape of the output."""
        left, right = self._operands(activation)
        return self.geometry.output(np.matmul(left, right.swapaxes(1, 2))).astype(np.int32)

    def _operands(self, activation: Array) -> tuple[Array, Array]:
        weight = weight_levels(self.weight)
        check_accumulator(self.geometry.depth, self.activation.largest, int(np.abs(weight).max(initial=0)))
        pad = 1 if self.activation.kind == "bits" else 0
        return self.geometry.by_group(self.activation.levels(activation), weight, pad)


@dataclass(frozen=True, eq=False)
class BinarizedProduct(Operator):
    """A quantizer and the one product that reads its signs: float32 [..., channels] in, in the layout of the product.

    Stores the forms of the product's epilogue, then the bits that `quantizer` makes.
    """

    quantizer: ToBits
    product: QuantizedProduct
    inputs = 1

    @property
    def epilogue(self) -> Epilogue:
        return self.product.epilogue

    @property
    def macs(self) -> int:
        return self.product.macs

    def facts(self) -> Facts:
        return self.product.facts()

    def renamed(self, names: Mapping[str, str]) -> Operator:
        product = replace(self.product, epilogue=self.product.epilogue.renamed(names))
        return replace(self, product=product)

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        bits = self.quantizer.store(inputs[0].reshape(-1, self.quantizer.storage.channels))
        return [*self.product.reference([bits], tensors), bits]


@dataclass(frozen=True, eq=False)
class FloatProduct(Fused):
    """The float path: same geometry, float32 weights of the same shape; order of summation is free.

    The reference sums in float64 and rounds once; kernels meet it within a tolerance.
    """

    geometry: MatMul | Conv2d
    weight: Array
    epilogue: Epilogue
    inputs = 1

    @property
    def macs(self) -> int:
        return self.geometry.macs

    def facts(self) -> Facts:
        return Facts(weights="float32", weight_bytes=int(self.weight.nbytes))

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        left, right = self.geometry.by_group(inputs[0], self.weight, 0)
        return self.epilogue.reference(self.geometry.output(np.matmul(left, right.swapaxes(1, 2))), tensors)


@dataclass(frozen=True, eq=False)
class BatchMatMul(Fused):
    """float32 [batch, rows, depth] x [batch, depth, columns], both run-time tensors; computed like FloatProduct.

    If transposed, the second is [batch, columns, depth].
    """

    batch: int
    geometry: MatMul
    transposed: bool
    epilogue: Epilogue
    inputs = 2

    @property
    def macs(self) -> int:
        return self.batch * self.geometry.macs

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        shape = self.geometry
        left = inputs[0].reshape(self.batch, shape.rows, shape.depth).astype(np.float64)
        right = inputs[1].astype(np.float64)
        if self.transposed:
            right = right.reshape(self.batch, shape.columns, shape.depth).swapaxes(1, 2)
        return self.epilogue.reference(left @ right.reshape(self.batch, shape.depth, shape.columns), tensors)
