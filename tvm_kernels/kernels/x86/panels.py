"""Weights packed for a product: panels of output channels, each a stream of vectors in the order of the inner loop.

A panel covers `vectors` x lanes output channels. Its stream is

    for each step of the reduction, for each vector of channels: [lanes][elements of a step]      one byte each: a code

where a step is the activations of one instruction (4 elements of 8 bits, 2 of 16, or a word of 32 bits). Codes of 2 or
4 bits are packed so that one shift and one mask unpack a vector: with `per` = 8 / bits, byte i of chunk c is made of
code i of vectors c * per ... c * per + per - 1, the first in the lowest bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm, Ramp

from subbyte.tvm_kernels.kernels.tir.vectors import reinterpret, splat
from subbyte.tvm_kernels.kernels.x86.instructions import Instruction
from subbyte.tvm_kernels.kernels.x86.operands import Operands

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Panels:
    """All panels of a weight: group by group, whole panels first, then the narrower last one of each group."""

    data: npt.NDArray[np.uint8] = field(repr=False)
    bits: int  # of a code
    table: tuple[int, ...]  # the level of each code of less than 8 bits
    instruction: Instruction
    vectors: int  # of a whole panel
    whole: int  # panels in a group
    tail_columns: int  # channels in the last panel of a group, 0 if there is none
    tail_vectors: int
    panel_bytes: int
    group_bytes: int
    steps: int  # of the reduction

    @property
    def columns(self) -> int:
        """Channels of a whole panel."""
        return self.vectors * self.instruction.lanes

    @property
    def per_group(self) -> int:
        """Panels of a group, the narrower one included."""
        return self.whole + (self.tail_columns > 0)

    @property
    def per_chunk(self) -> int:
        """Vectors of codes in one packed vector."""
        return 8 // self.bits

    @property
    def decodes(self) -> bool:
        """Whether the operands differ from the stored bytes."""
        return self.bits < 8 or self.instruction.widened > 1

    def chunks(self, vectors: int, parts: int = 1) -> int:
        """Packed vectors in a panel of that many vectors of channels, or in one of so many equal parts of its steps."""
        codes = self.steps // parts * vectors * self.instruction.vector_bytes // self.instruction.widened
        return -(-codes // (self.instruction.vector_bytes * self.per_chunk))

    def decoded_bytes(self, parts: int) -> int:
        """Bytes of a decoded part of a panel."""
        chunk = self.per_chunk * self.instruction.vector_bytes * self.instruction.widened
        return self.chunks(max(self.vectors if self.whole else 0, self.tail_vectors), parts) * chunk


def pack_panels(operands: Operands, depth: int, vectors: int, instruction: Instruction, inline: bool) -> Panels:
    """Pack codes for panels of `vectors` vectors; `depth` is the depth of one window position after padding.

    `inline`: the inner loop decodes, so each step of a panel must be whole chunks.
    """
    values, bits, groups = operands.codes, operands.bits, operands.window.groups
    elements = 4 // instruction.widened
    channels = values.shape[0] // groups
    per = 8 // bits
    columns = vectors * instruction.lanes
    whole, tail = divmod(channels, columns)
    tail_vectors = -(-tail // instruction.lanes)
    if inline:
        tail_vectors = -(-tail_vectors // per) * per
    if depth > values.shape[3]:
        values = np.pad(values, [(0, 0), (0, 0), (0, 0), (0, depth - values.shape[3])])
    steps = values.shape[1] * values.shape[2] * depth // elements
    values = np.ascontiguousarray(values).reshape(groups, channels, steps, elements)
    parts: list[Array] = []
    sizes: list[int] = []
    for group in range(groups):
        starts = [(p * columns, vectors) for p in range(whole)] + ([(whole * columns, tail_vectors)] if tail else [])
        for start, width in starts:
            panel = values[group, start : start + width * instruction.lanes]
            if panel.shape[0] < width * instruction.lanes:
                panel = np.pad(panel, [(0, width * instruction.lanes - panel.shape[0]), (0, 0), (0, 0)])
            parts.append(_pack_stream(panel.transpose(1, 0, 2).reshape(-1), bits, instruction.vector_bytes))
            sizes.append(parts[-1].size)
    per_group = whole + (tail > 0)
    return Panels(
        data=np.concatenate(parts),
        bits=bits,
        table=operands.table,
        instruction=instruction,
        vectors=vectors,
        whole=whole,
        tail_columns=tail,
        tail_vectors=tail_vectors,
        panel_bytes=sizes[0] if whole else 0,
        group_bytes=sum(sizes[:per_group]),
        steps=steps,
    )


def _pack_stream(stream: Array, bits: int, vector_bytes: int) -> Array:
    per = 8 // bits
    stream = np.pad(stream, (0, -stream.size % (vector_bytes * per))).reshape(-1, per, vector_bytes)
    packed = np.zeros((stream.shape[0], vector_bytes), np.uint8)
    for index in range(per):
        packed |= stream[:, index] << np.uint8(bits * index)
    return packed.reshape(-1)


# ---- decoding, in TIR ----


def decode_chunk(panels: Panels, packed: Any, start: Any) -> list[Any]:
    """The vectors of int8 levels in the packed vector at byte `start` of the buffer `packed`."""
    width = panels.instruction.vector_bytes
    chunk = packed[Ramp(start, 1, width)]
    if panels.bits == 8:
        return [reinterpret(f"int8x{width}", chunk)]
    chunk = T.bind(chunk)
    mask = splat(IntImm("uint8", (1 << panels.bits) - 1), width)
    decoded = []
    for index in range(panels.per_chunk):
        shifted = T.shift_right(chunk, splat(IntImm("uint8", panels.bits * index), width)) if index else chunk
        decoded.append(panels.instruction.lookup(list(panels.table), T.bitwise_and(shifted, mask)))
    return decoded


def decode_panel(
    panels: Panels, packed: Any, start: Any, vectors: int, into: Any, into_start: int, parts: int = 1
) -> None:
    """Emit the decoding of one panel, or a part of it, from byte `start` of `packed` into the int8 buffer `into`."""
    width = panels.instruction.vector_bytes
    wide = panels.instruction.widened
    with T.serial(0, panels.chunks(vectors, parts)) as chunk:
        for index, levels in enumerate(decode_chunk(panels, packed, start + chunk * width)):
            at = into_start + (chunk * panels.per_chunk + index) * (width * wide)
            if wide == 1:
                T.buffer_store(into, levels, [Ramp(at, 1, width)])
            else:
                # 16-bit operands: the two halves of the vector, each sign-extended.
                for half, pick in enumerate((T.vectorlow, T.vectorhigh)):
                    part = T.Cast(f"int16x{width // 2}", pick(f"int8x{width // 2}", T.bind(levels)))
                    T.buffer_store(into, reinterpret(f"int8x{width}", part), [Ramp(at + half * width, 1, width)])
