"""The NumPy arithmetic of every operator: what each row of the kernel table must equal.

`run(op, activations, tensors)` takes the operator's own run-time inputs by position and the epilogue's tensors
(RowScale, Combine) by name. In `Built.parameters` the own inputs are `Input(OWN_INPUTS[0])` and, for the right operand
of BatchMatMul, `Input(OWN_INPUTS[1])`; an epilogue's tensor is `Input(step.tensor)`.

Integers are exact. The epilogue is float32 in the written order, so codes, bits and float32 results of a
QuantizedProduct whose epilogue has no gelu, sigmoid, tanh or silu must be equal bit for bit. Everything that sums
floats (FloatProduct, BatchMatMul, Softmax, LayerNorm, an average) or needs exp, erf or tanh is computed here in float64
and rounded once; kernels meet it within a tolerance.

Weights by group: the int32 sum of each group times its float32 scale, added to a float32 that starts at +0, in the
order of the groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import CompileError, InputError
from subbyte.formats import LowBitTensor, PerGroup
from subbyte.formats.reference import check_accumulator, pack_bits, quantize_per_token
from subbyte.tvm_kernels import operators as ops

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Tensors = Mapping[str, Array]


def run(op: ops.Operator, activations: Sequence[Array], tensors: Tensors | None = None) -> list[Array]:
    """The outputs of `op`, one for each form of its epilogue, as they are stored (float32, uint8 codes, uint32 bits).

    `activations`: the own inputs as stored; `tensors`: the run-time tensors named by RowScale and Combine. Outputs are
    [rows, columns], [batch, rows, columns] or [batch, height, width, channels]. Raises CompileError for an operator
    that has no arithmetic here.
    """
    function = _ARITHMETIC.get(type(op))
    if function is None:
        raise CompileError(f"'{op.name}': {type(op).__name__} has no reference arithmetic; add it to reference.py")
    return [np.ascontiguousarray(a) for a in function(op, [np.asarray(a) for a in activations], tensors or {})]


# ---- storages ----


def levels(stored: Array, storage: ops.Storage) -> Array:
    """The values that a stored tensor stands for: float32, or int32 levels of codes and bits."""
    if isinstance(storage, ops.Float):
        return np.asarray(stored, np.float32)
    if isinstance(storage, ops.Codes):
        return stored.astype(np.int32) - storage.zero_point
    words = np.ascontiguousarray(stored, "<u4").view(np.uint8)
    signs = np.unpackbits(words, axis=-1, bitorder="little")[..., : storage.channels].astype(np.int32)
    return np.asarray(2 * signs - 1)


def store(y: Float32, form: ops.Form) -> Array:
    """float32 [..., channels] as that form stores it."""
    if isinstance(form, ops.ToFloat):
        return y
    if isinstance(form, ops.ToCodes):
        factor = np.float32(form.factor)
        levels = _nearest(y / factor if form.divide else y * factor, form.storage.low, form.storage.high)
        return np.asarray((levels + form.storage.zero_point).astype(np.uint8))
    return pack_bits(np.where(y >= form.threshold.astype(np.float32), 1, -1))


def _nearest(scaled: Float32, low: int, high: int) -> Array:
    """The nearest level, ties to even, as int32; what is out of range saturates, NaN at the bottom."""
    return np.asarray(np.where(np.isnan(scaled), low, np.clip(np.rint(scaled), low, high)), np.int32)


# ---- epilogue ----


def activate(function: str, y: Float32) -> Float32:
    """An elementwise function of float32; relu, hardswish and hardsigmoid in float32 steps, the others rounded once."""
    if function not in _ACTIVATE:
        raise CompileError(f"unknown activation '{function}'; known: {', '.join(sorted(_ACTIVATE))}")
    return _ACTIVATE[function](y).astype(np.float32)


def _sigmoid(y: Float64) -> Float64:
    small = np.exp(-np.abs(y))
    return np.asarray(np.where(y >= 0, 1 / (1 + small), small / (1 + small)))


def _erf(y: Float64) -> Float64:
    flat = [math.erf(value) for value in y.ravel().tolist()]
    return np.array(flat, np.float64).reshape(y.shape)


def _hardsigmoid(y: Float32) -> Float32:
    """min(max(y * (1/6) + 0.5, 0), 1): ONNX HardSigmoid with torch's alpha."""
    return np.asarray(np.clip(y * np.float32(1 / 6) + np.float32(0.5), np.float32(0), np.float32(1)))


_ACTIVATE: dict[str, Callable[[Float32], Array]] = {
    "relu": lambda y: np.maximum(y, np.float32(0)),
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda y: y * _hardsigmoid(y),
    "sigmoid": lambda y: _sigmoid(y.astype(np.float64)),
    "tanh": lambda y: np.tanh(y.astype(np.float64)),
    "silu": lambda y: y * _sigmoid(y.astype(np.float64)),
    "gelu": lambda y: 0.5 * y * (1 + _erf(y.astype(np.float64) * math.sqrt(0.5))),
}


def _scale(step: ops.Scale, y: Float32, tensors: Tensors) -> Float32:
    return np.asarray(y * step.values.astype(np.float32))


def _bias(step: ops.Bias, y: Float32, tensors: Tensors) -> Float32:
    return np.asarray(y + step.values.astype(np.float32))


def _row_scale(step: ops.RowScale, y: Float32, tensors: Tensors) -> Float32:
    return np.asarray(y * tensors[step.tensor].astype(np.float32).reshape(*y.shape[:-1], 1))


def _combine(step: ops.Combine, y: Float32, tensors: Tensors) -> Float32:
    return _COMBINE[step.op](y, tensors[step.tensor].astype(np.float32).reshape(y.shape))


def _clip(step: ops.Clip, y: Float32, tensors: Tensors) -> Float32:
    return np.asarray(np.minimum(np.maximum(y, np.float32(step.low)), np.float32(step.high)))


def _prelu(step: ops.PRelu, y: Float32, tensors: Tensors) -> Float32:
    return np.asarray(np.where(y >= 0, y, y * step.slope.astype(np.float32)))


_STEPS: dict[type, Callable[[Any, Float32, Tensors], Float32]] = {
    ops.Scale: _scale,
    ops.Bias: _bias,
    ops.RowScale: _row_scale,
    ops.Combine: _combine,
    ops.Activate: lambda step, y, tensors: activate(step.function, y),
    ops.Clip: _clip,
    ops.PRelu: _prelu,
}
_COMBINE: dict[str, Callable[[Float32, Float32], Float32]] = {
    "add": lambda a, b: a + b,
    "multiply": lambda a, b: a * b,
    "subtract": lambda a, b: a - b,
}


def epilogue(y: Array, after: ops.Epilogue, tensors: Tensors) -> list[Array]:
    """The steps of an epilogue on [..., channels], in float32 and in order; one stored array for each form."""
    with np.errstate(over="ignore", invalid="ignore"):
        value: Float32 = y.astype(np.float32)
        for step in after.steps:
            value = _STEPS[type(step)](step, value, tensors).astype(np.float32)
        return [store(value, form) for form in after.forms]


# ---- products ----


def patches(a: Array, conv: ops.Conv2d, pad_value: float) -> Array:
    """im2col: [batch, height, width, channels] to [batch, out_h, out_w, kernel_h, kernel_w, channels]."""
    top, left, bottom, right = conv.padding
    padded = np.pad(a, [(0, 0), (top, bottom), (left, right), (0, 0)], constant_values=pad_value)
    out = np.empty((conv.batch, conv.out_height, conv.out_width, *conv.kernel, conv.channels), a.dtype)
    for y in range(conv.kernel[0]):
        for x in range(conv.kernel[1]):
            first = (y * conv.dilation[0], x * conv.dilation[1])
            rows = slice(first[0], first[0] + (conv.out_height - 1) * conv.stride[0] + 1, conv.stride[0])
            columns = slice(first[1], first[1] + (conv.out_width - 1) * conv.stride[1] + 1, conv.stride[1])
            out[:, :, :, y, x, :] = padded[:, rows, columns, :]
    return out


def _grouped_operands(a: Array, w: Array, geometry: ops.MatMul | ops.Conv2d, pad: float) -> tuple[Array, Array]:
    """Operands as [groups, rows, depth] and [groups, columns, depth] float64; one group for a matrix product."""
    if isinstance(geometry, ops.MatMul):
        return a.reshape(1, geometry.rows, geometry.depth).astype(np.float64), w[None].astype(np.float64)
    g = geometry.groups
    columns = patches(a.reshape(geometry.batch, geometry.height, geometry.width, geometry.channels), geometry, pad)
    rows = geometry.batch * geometry.out_height * geometry.out_width
    split = columns.reshape(rows, *geometry.kernel, g, geometry.channels // g)
    left = np.moveaxis(split, 3, 0).reshape(g, rows, geometry.depth)
    return left.astype(np.float64), w.reshape(g, geometry.out_channels // g, geometry.depth).astype(np.float64)


def _ungrouped(y: Array, geometry: ops.MatMul | ops.Conv2d) -> Array:
    """[groups, rows, columns] to the shape of the output."""
    if isinstance(geometry, ops.MatMul):
        return np.asarray(y[0])
    flat = np.moveaxis(y, 0, 1)
    return flat.reshape(geometry.batch, geometry.out_height, geometry.out_width, geometry.out_channels)


def weight_levels(weight: LowBitTensor) -> npt.NDArray[np.int32]:
    """level - zero_point of a weight, int32 of its shape."""
    found = weight.levels()
    if weight.zero_point is None:
        return found
    zero = weight.granularity.expand(weight.zero_point, weight.matrix_shape)
    return (found - zero.reshape(weight.shape)).astype(np.int32)


def accumulators(op: ops.QuantizedProduct, activation: Array) -> npt.NDArray[np.int32]:
    """The int32 sums of a product over its whole depth, in the shape of the output."""
    left, right = _levels_of(op, activation)
    return _ungrouped(np.matmul(left, right.swapaxes(1, 2)), op.geometry).astype(np.int32)


def _levels_of(op: ops.QuantizedProduct, activation: Array) -> tuple[Array, Array]:
    binary = isinstance(op.activation, ops.Bits)
    weight = weight_levels(op.weight)
    largest = 1 if isinstance(op.activation, ops.Bits) else op.activation.largest
    check_accumulator(op.geometry.depth, largest, int(np.abs(weight).max(initial=0)))
    return _grouped_operands(levels(activation, op.activation), weight, op.geometry, 1 if binary else 0)


def quantized_product(op: ops.QuantizedProduct, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    if not isinstance(op.weight.granularity, PerGroup):
        return epilogue(accumulators(op, activations[0]), op.epilogue, tensors)
    left, right = _levels_of(op, activations[0])
    groups, size = left.shape[0], op.weight.granularity.size
    total = np.zeros((groups, left.shape[1], right.shape[1]), np.float32)
    scale = op.weight.scale.reshape(groups, right.shape[1], -1)
    for index, start in enumerate(range(0, op.geometry.depth, size)):
        part = slice(start, start + size)
        sums = np.matmul(left[..., part], right[..., part].swapaxes(1, 2)).astype(np.float32)
        total = total + sums * scale[:, None, :, index]
    return epilogue(_ungrouped(total, op.geometry), op.epilogue, tensors)


def binarized_product(op: ops.BinarizedProduct, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    channels = op.quantizer.storage.channels
    bits = store(activations[0].reshape(-1, channels), op.quantizer)
    return [*quantized_product(op.product, [bits], tensors), bits]


def float_product(op: ops.FloatProduct, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    left, right = _grouped_operands(activations[0], op.weight, op.geometry, 0)
    return epilogue(_ungrouped(np.matmul(left, right.swapaxes(1, 2)), op.geometry), op.epilogue, tensors)


def batch_matmul(op: ops.BatchMatMul, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    shape = op.geometry
    left = activations[0].reshape(op.batch, shape.rows, shape.depth).astype(np.float64)
    right = activations[1].astype(np.float64)
    if op.transposed:
        right = right.reshape(op.batch, shape.columns, shape.depth).swapaxes(1, 2)
    return epilogue(left @ right.reshape(op.batch, shape.depth, shape.columns), op.epilogue, tensors)


# ---- the rest ----


def elementwise(op: ops.Elementwise, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    return epilogue(activations[0].reshape(op.rows, op.channels), op.epilogue, tensors)


def quantize_tokens(op: ops.QuantizeTokens, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    codes, step = quantize_per_token(activations[0].reshape(op.rows, op.channels))
    return [(codes + 128).astype(np.uint8), step]


def pool2d(op: ops.Pool2d, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    shape = op.geometry
    values = levels(activations[0], op.activation).astype(np.float64)
    windows = patches(
        values.reshape(shape.batch, shape.height, shape.width, shape.channels),
        shape,
        -np.inf if op.function == "max" else 0,
    )
    if op.function == "max":
        return epilogue(windows.max(axis=(3, 4)), op.epilogue, tensors)
    sums = windows.sum(axis=(3, 4))
    if op.function == "average":
        inside = np.ones((shape.batch, shape.height, shape.width, shape.channels))
        counts = patches(inside, shape, 1 if op.count_padding else 0).sum(axis=(3, 4))
        sums = sums / counts
    return epilogue(sums, op.epilogue, tensors)


def unfold(op: ops.Unfold, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    shape = op.geometry
    image = activations[0].reshape(shape.batch, shape.height, shape.width, shape.channels)
    windows = patches(image, shape, op.storage.zero_point)
    pixels = (shape.batch, shape.out_height, shape.out_width)
    by_group = windows.reshape(*pixels, -1, shape.groups, shape.channels // shape.groups)
    lines = np.moveaxis(by_group, -2, -3).reshape(*pixels, shape.groups, shape.depth)
    return [lines[..., op.order].reshape(*pixels, -1)]


def softmax(op: ops.Softmax, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    x = activations[0].reshape(op.rows, op.channels).astype(np.float64)
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return [(powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)]


def layer_norm(op: ops.LayerNorm, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    x = activations[0].reshape(op.rows, op.channels).astype(np.float64)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    y = centred / np.sqrt(variance + op.epsilon) * op.gamma.astype(np.float64) + op.beta.astype(np.float64)
    return epilogue(y, op.epilogue, tensors)


def permute(op: ops.Permute, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    return [np.transpose(activations[0].reshape(op.shape), op.perm)]


def check_indices(op: ops.CheckIndices, activations: Sequence[Array], tensors: Tensors) -> list[Array]:
    given = activations[0].reshape(-1)
    size = np.resize(np.array(op.sizes, np.int64), given.size)
    lowest = -size if op.negative else 0 * size
    wrong = np.flatnonzero((given < lowest) | (given >= size))
    if wrong.size:
        at = int(wrong[0])
        raise InputError(
            f"operator '{op.name}': index {given[at]}, element {at} of its indices, is out of range; "
            f"expected {lowest[at]} .. {size[at] - 1}"
        )
    return [np.where(given < 0, given + size, given).astype(np.int32)]


_ARITHMETIC: dict[type, Callable[[Any, Sequence[Array], Tensors], list[Array]]] = {
    ops.QuantizedProduct: quantized_product,
    ops.BinarizedProduct: binarized_product,
    ops.FloatProduct: float_product,
    ops.BatchMatMul: batch_matmul,
    ops.Elementwise: elementwise,
    ops.QuantizeTokens: quantize_tokens,
    ops.Pool2d: pool2d,
    ops.Unfold: unfold,
    ops.Softmax: softmax,
    ops.LayerNorm: layer_norm,
    ops.Permute: permute,
    ops.CheckIndices: check_indices,
}
