"""The input of the x86 product builder, computed from a Product by the rows in dot.py and binary.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels.kernels.x86.instructions import Instruction
from subbyte.tvm_kernels.operators import Conv2d, Epilogue, Product, Scale

WIDEST_PANEL = 16  # vectors of channels


@dataclass(frozen=True, eq=False)
class Operands:
    """The operands of a product of codes or of bits.

    window: in bytes of activations; codes: of the weights [channels, kernel_h, kernel_w, bytes], one a byte, of `bits`
    bits; table: the level of each, empty where bytes are the operand itself (8 bits); fill: one padded pixel; start:
    int32 [quantization groups, channels], the first value of each sum; scale: float32 of the same shape, or None;
    group_elements: elements in a quantization group; finish: from the sum to the product; unpacked: bytes that each
    byte of activations is unpacked to when its tile is copied, 8 where bits are multiplied as bytes.
    """

    window: Conv2d
    codes: npt.NDArray[np.uint8]
    bits: int
    fill: bytes
    start: npt.NDArray[np.int32]
    epilogue: Epilogue
    scale: npt.NDArray[np.float32] | None = None
    group_elements: int = 0
    finish: Callable[[Any], Any] | None = None
    unpacked: int = 1
    table: tuple[int, ...] = ()


def padded_channels(values: npt.NDArray[Any], instruction: Instruction) -> npt.NDArray[Any]:
    """[groups, channels] with zeros for a whole panel after the last channel: the last panel loads whole vectors."""
    return np.pad(values, [(0, 0), (0, WIDEST_PANEL * instruction.lanes)])


def depth_groups(op: Product[Any, LowBitTensor]) -> int:
    """Elements of the reduction that share a scale inside the sum, or 0 where none do."""
    return op.group_size if op.group_size < op.right.depth else 0


def epilogue_with_scale(op: Product[Any, LowBitTensor]) -> Epilogue:
    """The operator's epilogue; where one group is the whole depth, its scale is the first step."""
    if not op.group_size or depth_groups(op):
        return op.epilogue
    return replace(op.epilogue, steps=(Scale(op.right.scale.reshape(-1)), *op.epilogue.steps))
