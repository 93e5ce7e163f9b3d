"""The product: a convolution or matrix product with exact int32 sums or float sums; then an epilogue in float32.

Its operands are types. The left one is a run-time tensor; the right one is a constant or a second run-time tensor:

    Product(name, Codes(0, 255), low_bit_tensor, geometry, epilogue)        integers
    Product(name, Binarized(quantizer), low_bit_tensor, ...)                a fused quantizer to bits
    Product(name, Float(), FloatWeight(values), ...)                        float32
    Product(name, Float(), low_bit_tensor, ...)                             weight-only
    Product(name, Float(), Structure(parts, Sum()), ...)                    a weight of several low-bit tensors
    Product(name, Codes(-128, 127), Codes(-128, 127), MatMul(..., batch=3)) two run-time tensors; of Float or Bits too
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from subbyte.errors import CompileError
from subbyte.formats import BINARY_LEVELS, LowBitTensor, PerChannel, Structure, all_formats, get
from subbyte.formats.energy import FLOAT, PerMac
from subbyte.formats.reference import check_accumulator, pack_bits
from subbyte.tvm_kernels.operators.epilogue import Epilogue, ToBits
from subbyte.tvm_kernels.operators.geometry import Conv2d, MatMul
from subbyte.tvm_kernels.operators.operands import Array, Bits, Codes, Float, FloatWeight, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Facts, Fused


@dataclass(frozen=True, eq=False)
class Binarized:
    """float32 [..., channels] in the product's layout; the product binarizes it and stores the bits as last output."""

    quantizer: ToBits
    format = "binary"
    integer = True
    largest = pad = 1

    def levels(self, stored: Array) -> Array:
        """The binary values, int32 -1 and +1."""
        return self.quantizer.storage.levels(self.store(stored))

    def store(self, stored: Array) -> Array:
        """The binary values as bits, uint32 [rows, words]."""
        return self.quantizer.apply(stored.reshape(-1, self.quantizer.storage.channels))


Left = TypeVar("Left", bound=Float | Codes | Bits | Binarized, covariant=True)
Right = TypeVar("Right", bound=LowBitTensor | Structure | FloatWeight | Float | Codes | Bits, covariant=True)


@dataclass(frozen=True, eq=False)
class Product(Fused, Generic[Left, Right]):
    """Matrix product or convolution of two operands.

    Shape of a constant: MatMul [columns, depth]; Conv2d [out_channels, kernel_h, kernel_w, channels / groups]. With
    weights by group the int32 sum of each group times its float32 scale is added to a float32 that starts at +0, in
    the order of the groups; otherwise levels are multiplied, and all scales are in the epilogue (the weight's own
    `scale` is ignored here). Padding is level 0 for codes, +1 for bits.

    Results of integer products are equal bit for bit in every kernel if the epilogue has no gelu, sigmoid, tanh or
    silu. Float sums have no fixed order: the reference sums in float64 and rounds once, kernels differ from it within
    a tolerance.
    """

    left: Left
    right: Right
    geometry: MatMul | Conv2d
    epilogue: Epilogue

    def __post_init__(self) -> None:
        if self.of_integers and self.weight is not None and not self.weight.format.levels.integer:
            raise CompileError(
                f"'{self.name}': its activation is {self.left.format}, and levels of {self.weight.format.name} are "
                "real numbers: a product of integers needs weights of integer levels, or an activation in float32"
            )

    @property
    def operands(self) -> tuple[object, ...]:
        return self.left, self.right

    @property
    def weight(self) -> LowBitTensor | None:
        """The right operand, if that is a low-bit constant."""
        return self.right if isinstance(self.right, LowBitTensor) else None

    @property
    def second(self) -> Float | Codes | Bits | None:
        """The right operand, if that is a run-time tensor."""
        return self.right if isinstance(self.right, Float | Codes | Bits) else None

    @property
    def inputs(self) -> int:
        return 1 if self.second is None else 2

    @property
    def macs(self) -> int:
        return self.geometry.macs

    @property
    def kind(self) -> str:
        """The name in reports and manifests, as bundles have had it since 0.1.0."""
        if not self.of_integers:
            return "FloatProduct" if self.second is None else "BatchMatMul"
        return "BinarizedProduct" if isinstance(self.left, Binarized) else "QuantizedProduct"

    @property
    def of_integers(self) -> bool:
        """Whether sums are int32, and exact; not for a structure, whose parts are combined in float."""
        return self.left.integer and not isinstance(self.right, Structure)

    @property
    def group_size(self) -> int:
        """Elements of the reduction that share a scale inside the sum; 0 where scales are in the epilogue."""
        return 0 if self.weight is None else self.weight.group_size

    @property
    def sums_are_exact(self) -> bool:
        return self.of_integers and not self.group_size

    def facts(self) -> Facts:
        activation = self.left.format if self.of_integers else None
        per_mac, second = self._per_mac(), self.second
        if second is not None:
            return Facts(activation, second.format if second.integer else "-", second.bits, per_mac=per_mac)
        if isinstance(self.right, LowBitTensor | Structure):
            name = self.right.name if isinstance(self.right, Structure) else self.right.format.name
            return Facts(activation, name, float(self.right.bits_per_weight), int(self.right.nbytes), per_mac)
        return Facts(activation, "float32", weight_bytes=int(self._constant().nbytes), per_mac=per_mac)

    def _per_mac(self) -> PerMac:
        if isinstance(self.right, Structure):
            return self.right.per_mac
        if isinstance(self.right, FloatWeight | Float):
            return FLOAT
        right = self.right.format if isinstance(self.right, LowBitTensor) else get(self.right.format)
        if not self.of_integers:
            return right.per_mac(None)
        return right.per_mac(BINARY_LEVELS if isinstance(self.left, Bits | Binarized) else get(self.left.format).levels)

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        outputs = self.epilogue.reference(self.geometry.output(self._sums(*self._by_group(inputs))), tensors)
        return [*outputs, self.left.store(inputs[0])] if isinstance(self.left, Binarized) else outputs

    def in_float(self) -> Product[Float, FloatWeight]:
        """The product of floats with the same constant: its levels; for weights by group its dequantized values."""
        product = Product(self.name, Float(), self.right, self.geometry, self.epilogue)
        weight = FloatWeight(product._constant().astype(np.float32))
        return Product(self.name, Float(), weight, self.geometry, self.epilogue)

    def _constant(self) -> Array:
        """The values of the constant in the product: levels int32, or float32 values."""
        if self.weight is not None:
            if self.of_integers:
                return self.weight.integers()
            return self.weight.dequantize() if self.group_size else self.weight.unscaled()
        if isinstance(self.right, Structure):
            return self.right.dequantize()
        assert isinstance(self.right, FloatWeight)
        return self.right.values

    def _by_group(self, inputs: Sequence[Array]) -> tuple[Array, Array]:
        """The levels or floats of the operands, [groups, rows, depth] and [groups, columns, depth]."""
        left = self.left.levels(inputs[0])
        if self.second is not None:
            right, largest = self.second.levels(inputs[1]), self.second.largest
        else:
            right = self._constant()
            largest = np.abs(right).max(initial=0)
        if self.of_integers:
            check_accumulator(self.geometry.depth, int(self.left.largest), int(largest))
        return self.geometry.by_group(left, right, self.left.pad)

    def _sums(self, left: Array, right: Array) -> Array:
        size = self.group_size if self.of_integers else 0
        if self.weight is None or not size:
            return np.asarray(np.matmul(left, right.swapaxes(1, 2)))
        groups, columns = right.shape[:2]
        total = np.zeros((groups, left.shape[1], columns), np.float32)
        scale = self.weight.scale.reshape(groups, columns, -1)
        for index, start in enumerate(range(0, self.geometry.depth, size)):
            part = slice(start, start + size)
            sums = np.matmul(left[..., part], right[..., part].swapaxes(1, 2)).astype(np.float32)
            total = total + sums * scale[:, None, :, index]
        return total

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        """A matrix product of each kind of operands that kernel rows of every CPU support."""
        matrix = MatMul(7, 40, 33)

        def weight(name: str) -> LowBitTensor:
            levels = random.choice(get(name).levels.values, (33, 40))
            return LowBitTensor.from_levels(get(name), levels, np.ones(33, np.float32), PerChannel())

        codes, floats = random.integers(0, 256, (7, 40), np.uint8), random.normal(size=(7, 40)).astype(np.float32)
        words = pack_bits(random.choice([-1, 1], (7, 40)))
        second, both = random.integers(0, 256, (33, 40), np.uint8), pack_bits(random.choice([-1, 1], (33, 40)))
        values = FloatWeight(random.normal(size=(33, 40)).astype(np.float32))
        unsigned, bits, none = Codes(0, 255), Bits(40), Epilogue()
        real = next(fmt.name for fmt in all_formats() if not fmt.levels.integer)
        return [
            Example(Product("codes by int4", unsigned, weight("int4"), matrix, none), (codes,)),
            Example(Product("bits by binary", bits, weight("binary"), matrix, none), (words,)),
            Example(Product("codes by codes", unsigned, unsigned, matrix, none), (codes, second)),
            Example(Product("bits by bits", bits, bits, matrix, none), (words, both)),
            Example(Product("floats", Float(), values, matrix, none), (floats,), exact=False),
            Example(Product("floats by int4", Float(), weight("int4"), matrix, none), (floats,), exact=False),
            Example(Product("floats by real levels", Float(), weight(real), matrix, none), (floats,), exact=False),
        ]
