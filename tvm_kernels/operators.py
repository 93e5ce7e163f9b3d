"""The operators that kernels serve, as plain data: what lowering makes and what a kernel builder is given.

Tensors between kernels come in three storages:
  float32   real numbers. Spatial tensors are channels last: [batch, height, width, channels].
  codes     uint8, same shape; the level of a byte is `byte - zero_point` (0 for unsigned, 128 for signed int8).
  bits      uint32 [..., ceil(channels / 32)], 32 signs a word, least significant first, 1 is +1; left-over bits are 0.

A product adds up integers exactly in int32; its `Epilogue` then does float32 arithmetic in exactly the written order,
with no fused multiply-add, so that torch, onnxruntime and every kernel give the same bits (docs/numbers.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from subbyte.formats import LowBitTensor

Array = npt.NDArray[Any]
WORD = 32  # signs in a word of bits


@dataclass(frozen=True)
class Float:
    """float32 storage."""

    dtype = "float32"


@dataclass(frozen=True)
class Codes:
    """uint8 storage of integer levels low..high; level = byte - zero_point."""

    low: int
    high: int
    zero_point: int = 0
    dtype = "uint8"

    @property
    def largest(self) -> int:
        """The largest absolute level."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Bits:
    """uint32 storage of signs packed along the last axis of `channels` elements."""

    channels: int
    dtype = "uint32"


Storage = Float | Codes | Bits


# ---- geometry ----


@dataclass(frozen=True)
class MatMul:
    """[rows, depth] x [columns, depth]^T -> [rows, columns]; leading axes are flattened into rows."""

    rows: int
    depth: int
    columns: int

    @property
    def macs(self) -> int:
        return self.rows * self.depth * self.columns


@dataclass(frozen=True)
class Conv2d:
    """Convolution, channels last; a Conv1d has height 1.

    Weights are [out_channels, kernel_h, kernel_w, channels / groups].
    """

    batch: int
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_height(self) -> int:
        reach = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[2] - reach) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[1] + self.padding[3] - reach) // self.stride[1] + 1

    @property
    def depth(self) -> int:
        """Length of the reduction."""
        return self.kernel[0] * self.kernel[1] * self.channels // self.groups

    @property
    def macs(self) -> int:
        return self.batch * self.out_height * self.out_width * self.out_channels * self.depth


# ---- epilogue: steps in the order they are applied to each output element, then the forms it is stored in ----


@dataclass(frozen=True, eq=False)
class Scale:
    """y = y * values[channel]; values float32 [columns] or [1]."""

    values: Array


@dataclass(frozen=True, eq=False)
class Bias:
    """y = y + values[channel]; values float32 [columns] or [1]."""

    values: Array


@dataclass(frozen=True)
class RowScale:
    """y = y * tensor[row]: the step of a per-token quantizer, a float32 run-time tensor [rows, 1]."""

    tensor: str


@dataclass(frozen=True)
class Combine:
    """y = y (add | multiply | subtract) tensor, float32 at run time, of the output's shape; `add` is a residual."""

    op: Literal["add", "multiply", "subtract"]
    tensor: str


@dataclass(frozen=True)
class Activate:
    """An elementwise function: relu, gelu (exact, with erf), sigmoid, tanh, silu, hardswish, hardsigmoid."""

    function: str


@dataclass(frozen=True)
class Clip:
    """y = min(max(y, low), high)."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class PRelu:
    """y = y if y >= 0 else y * slope[channel]; slope float32 [columns] or [1]."""

    slope: Array


Step = Scale | Bias | RowScale | Combine | Activate | Clip | PRelu


@dataclass(frozen=True)
class ToFloat:
    """Store y as float32."""

    storage = Float()


@dataclass(frozen=True)
class ToCodes:
    """Store clip(rint(y * factor), low, high) + zero_point as uint8; `divide`: rint(y / factor), as QuantizeLinear."""

    factor: float  # a float32 value: the inverse step, or with `divide` the step
    storage: Codes
    divide: bool = False


@dataclass(frozen=True, eq=False)
class ToBits:
    """Store the bit y >= threshold[channel], 32 to a word; threshold float32 [columns] or [1]."""

    threshold: Array
    storage: Bits


Form = ToFloat | ToCodes | ToBits


@dataclass(frozen=True, eq=False)
class Epilogue:
    """Float32 steps in order, then one stored tensor for each form."""

    steps: tuple[Step, ...] = ()
    forms: tuple[Form, ...] = (ToFloat(),)


# ---- operators ----
# `inputs` and `outputs` name run-time tensors. An epilogue's tensors (RowScale, Combine) come after `inputs`' own.


@dataclass(frozen=True, eq=False)
class QuantizedProduct:
    """Integer matrix product or convolution of codes or bits with low-bit weights.

    Weight shape: MatMul [columns, depth]; Conv2d [out_channels, kernel_h, kernel_w, channels / groups]. With weights by
    group the partial sums are scaled in float32 and added in group order; otherwise all scales stand in the epilogue
    (the weight's own `scale` is ignored here). Padded places hold level 0 for codes, +1 for bits.
    """

    name: str
    geometry: MatMul | Conv2d
    activation: Codes | Bits
    weight: LowBitTensor
    epilogue: Epilogue


@dataclass(frozen=True, eq=False)
class BinarizedProduct:
    """A quantizer and the one product that reads its signs: float32 [..., channels] in, in the layout of the product.

    Stores the forms of the product's epilogue, then the bits that `quantizer` makes.
    """

    quantizer: ToBits
    product: QuantizedProduct

    @property
    def name(self) -> str:
        return self.product.name

    @property
    def epilogue(self) -> Epilogue:
        return self.product.epilogue


@dataclass(frozen=True, eq=False)
class FloatProduct:
    """The float path: same geometry, float32 weights of the same shape; order of summation is free."""

    name: str
    geometry: MatMul | Conv2d
    weight: Array
    epilogue: Epilogue


@dataclass(frozen=True, eq=False)
class BatchMatMul:
    """float32 [batch, rows, depth] x [batch, depth, columns], both run-time tensors.

    If transposed, the second is [batch, columns, depth].
    """

    name: str
    batch: int
    geometry: MatMul
    transposed: bool
    epilogue: Epilogue


@dataclass(frozen=True, eq=False)
class Elementwise:
    """An epilogue on its own: float32 [rows, channels] in, its forms out. Quantize and Binarize alone are this."""

    name: str
    rows: int
    channels: int
    epilogue: Epilogue


@dataclass(frozen=True, eq=False)
class QuantizeTokens:
    """Per-token dynamic quantization: float32 [rows, channels] to codes (zero point 128) and step float32 [rows, 1].

    Arithmetic of formats.reference.quantize_per_token.
    """

    name: str
    rows: int
    channels: int


@dataclass(frozen=True, eq=False)
class Pool2d:
    """Pooling, channels last.

    `sum` adds integer levels of codes exactly and hands the sum to the epilogue (an average is a Scale after it);
    `max` is of codes, exactly, or of float32, and `average` of float32.
    """

    name: str
    function: Literal["sum", "max", "average"]
    geometry: Conv2d  # groups == channels == out_channels
    activation: Codes | Float
    epilogue: Epilogue
    count_padding: bool = False  # `average`: divide by the whole window, not by what lies inside


@dataclass(frozen=True, eq=False)
class Unfold:
    """The codes of every window as a line: uint8 [batch, out_height, out_width, groups * geometry.depth].

    Element `i` of a convolution group's line is element `order[i]` of its window, which is read as [kernel_h, kernel_w,
    channels / groups]. Padded places hold level 0. A 1x1 convolution of the lines is the convolution of the windows.
    """

    name: str
    geometry: Conv2d  # out_channels means nothing here
    storage: Codes
    order: Array  # int [geometry.depth], a permutation


@dataclass(frozen=True, eq=False)
class Softmax:
    """float32 softmax over the last axis of [rows, channels]."""

    name: str
    rows: int
    channels: int


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """float32 (x - mean) / sqrt(variance + epsilon) * gamma + beta over the last axis, then the epilogue."""

    name: str
    rows: int
    channels: int
    epsilon: float
    gamma: Array
    beta: Array
    epilogue: Epilogue


@dataclass(frozen=True, eq=False)
class Permute:
    """The elements of `shape`, moved as numpy.transpose(x, perm) moves them; float32, or uint8 for codes."""

    name: str
    shape: tuple[int, ...]
    perm: tuple[int, ...]
    dtype: Literal["float32", "uint8"] = "float32"


@dataclass(frozen=True, eq=False)
class CheckIndices:
    """Indices int32 or int64 [count] to int32, counted from the start: element i into 0 .. sizes[i % len(sizes)] - 1.

    With `negative`, -1 is the last element of an axis, as ONNX says. Any other index fails the run.
    """

    name: str
    count: int
    sizes: tuple[int, ...]
    dtype: Literal["int32", "int64"]
    negative: bool = True


Operator = (
    QuantizedProduct
    | BinarizedProduct
    | FloatProduct
    | BatchMatMul
    | Elementwise
    | QuantizeTokens
    | Pool2d
    | Unfold
    | Softmax
    | LayerNorm
    | Permute
    | CheckIndices
)


def constant(values: Any) -> Array:
    """A float32 vector for a step; a scalar becomes [1]."""
    return np.atleast_1d(np.asarray(values, np.float32))
