"""The primitives that a quantized layer is made of in eval mode: plain torch arithmetic, or calls of the `subbyte`
domain.

Inside `exporting` each primitive becomes one symbolic ONNX node, with its inputs in the order of
docs/onnx-dialect.md; outside it computes what that node's body computes, bit for bit (formats/reference.py).
All codes and levels are integer-valued float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION
from subbyte.errors import ExportError
from subbyte.formats import Format, PerGroup, unpack

Shape = tuple[int, ...]
# The shapes of the outputs of a function of the dialect, of the shapes of its inputs and those that are constants.
OutputShapes = Callable[[str, Sequence[Shape], Sequence[npt.NDArray[Any] | None]], Sequence[Shape]]

EXPORTING: ContextVar[OutputShapes | None] = ContextVar("subbyte_exporting", default=None)


def is_exporting() -> bool:
    """Whether the primitives emit ONNX nodes now."""
    return EXPORTING.get() is not None


def call(function: str, *inputs: Tensor | Sequence[int] | int) -> tuple[Tensor, ...]:
    """The outputs of a function of the dialect as one node of the file: float32, of the shapes that it says.

    Numbers become int64 constants of the file.

    Within `exporting` alone, for any module's forward; outside it a module computes what the function's body does, bit
    for bit. Raises UnknownNameError, and ExportError for another number of inputs than the function has.
    """
    output_shapes = EXPORTING.get()
    if output_shapes is None:
        raise ExportError(f"{DOMAIN}.{function} is called outside of an export; use `with exporting(...)`")
    constants = [None if isinstance(x, Tensor) else np.array(x, np.int64) for x in inputs]
    tensors = [x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.int64) for x in inputs]
    shapes = output_shapes(function, [tuple(x.shape) for x in tensors], constants)
    return tuple(
        torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{function}",
            tensors,
            dtypes=(torch.float32,) * len(shapes),
            shapes=shapes,
            version=DOMAIN_VERSION,
        )
    )


def quantize(x: Tensor, inverse_step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """clip(round(x * inverse_step), low, high), ties to even; the last three are float32 scalars, shape []."""
    if is_exporting():
        return call("Quantize", x, inverse_step, low, high)[0]
    return torch.clamp(torch.round(x * inverse_step), low, high)


def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes -128..127 of x [..., C] and the step [..., 1] of each vector along the last axis. BitNet b1.58, 2024."""
    if is_exporting():
        codes, step = call("QuantizePerToken", x)
        return codes, step
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-5)
    codes = torch.clamp(torch.round(x * (128.0 / largest)), -128.0, 127.0)
    return codes, largest * (1.0 / 128.0)


def binarize(x: Tensor, threshold: Tensor) -> Tensor:
    """+1 where x >= threshold, else -1; the threshold broadcasts against x."""
    if is_exporting():
        return call("Binarize", x, threshold)[0]
    return torch.where(x >= threshold, 1.0, -1.0)


def decode(packed: Tensor, shape: Sequence[int], fmt: Format) -> Tensor:
    """Packed codes uint8 [rows, bytes] to levels float32 of `shape`."""
    if is_exporting():
        return call(fmt.decoder, packed, tuple(shape))[0]
    depth = int(np.prod(shape[1:]))
    levels = fmt.decode(unpack(packed.cpu().numpy(), fmt.code_bits, depth)).reshape(tuple(shape))
    return torch.from_numpy(levels.astype(np.float32)).to(packed.device)


def dequantize_grouped(packed: Tensor, shape: Sequence[int], scale: Tensor, group_size: int, fmt: Format) -> Tensor:
    """Packed codes uint8 [rows, bytes] and scale float32 [rows, groups] to values float32 of `shape`: level x scale."""
    if is_exporting():
        return call(fmt.dequantizer, packed, tuple(shape), scale, group_size)[0]
    levels = decode(packed, shape, fmt).reshape(shape[0], -1)
    return (levels * expand_scale(scale, levels.shape, PerGroup(group_size))).reshape(tuple(shape))


def integer_sum(accumulator: Tensor) -> Tensor:
    """The integer sums of a product. The identity on exact sums; a Round when exporting, so that no engine folds the
    scale in.

    On accelerators it rounds as well: their convolutions may go through transforms that are only nearly exact.
    """
    if is_exporting() or accumulator.device.type != "cpu":
        return torch.round(accumulator)
    return accumulator


def expand_scale(scale: Tensor, shape: Sequence[int], granularity: object) -> Tensor:
    """Repeat a scale of `granularity.scale_shape` so that it broadcasts against a tensor of `shape` (differentiable).

    By group, `shape` is flattened to (shape[0], rest) first, as in formats.LowBitTensor.
    """
    if isinstance(granularity, PerGroup):
        depth = int(np.prod(shape[1:]))
        return scale.repeat_interleave(granularity.size, dim=1)[:, :depth].reshape(tuple(shape))
    if scale.dim() == 0:
        return scale
    return scale.reshape(-1, *[1] * (len(shape) - 1))
