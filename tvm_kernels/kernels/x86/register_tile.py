"""The inner loops of a product whose sums stay in vector registers: broadcast, multiply, add; then the epilogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Ramp

from subbyte.tvm_kernels.kernels.code_generator import unfused
from subbyte.tvm_kernels.kernels.registry import Built, kernel
from subbyte.tvm_kernels.kernels.tir.vectors import reinterpret, splat
from subbyte.tvm_kernels.kernels.x86.instructions import STEP_BYTES, Instruction
from subbyte.tvm_kernels.kernels.x86.operands import Operands
from subbyte.tvm_kernels.kernels.x86.panels import decode_chunk
from subbyte.tvm_kernels.kernels.x86.product import PanelTile, ProductBuilder, loop


class RegisterTile:
    """Emits the inner loops and the epilogue of one register tile of a panel."""

    def __init__(self, product: ProductBuilder, panel: PanelTile) -> None:
        self.product, self.group, self.weights = product, panel.group, panel.weights
        self.column, self.vectors, self.columns = panel.column, panel.vectors, panel.columns
        self.instruction = product.instruction
        self.lanes = product.instruction.lanes

    def emit(self, row: Any, start: Any, height: int, width: int) -> None:
        """Compute `height` x `width` positions from output row `row` of the tile and position `start` of the row."""
        product, window, layout = self.product, self.product.window, self.product.layout
        base = product.origin + row * (window.stride[0] * layout.row)
        base = base + start * (window.stride[1] * layout.pixel) + self.group * layout.group
        self.base = base if isinstance(base, int) else T.bind(base)
        self.offsets = [
            y * window.stride[0] * layout.row + x * window.stride[1] * layout.pixel
            for y in range(height)
            for x in range(width)
        ]
        if product.operands.scale is None:
            sums = self._sums(lambda vector: self._constant(product.start, 0, vector))
            self._window(sums)
        else:
            sums = self._by_quantization_group()
        output = (product.image * window.out_height + product.first_row + row) * window.out_width + start
        output = output if isinstance(output, int) else T.bind(output)
        for index, (y, x) in enumerate((y, x) for y in range(height) for x in range(width)):
            self._store(sums[index], output + (y * window.out_width + x))

    def _sums(self, first: Callable[[int], Any], dtype: str = "int32") -> list[list[Any]]:
        """One register for each position and vector, set to `first(vector)`."""
        starts = [T.bind(first(vector)) for vector in range(self.vectors)]
        registers = []
        for _ in self.offsets:
            registers.append([T.alloc_buffer((self.lanes,), dtype) for _ in starts])
            for register, start in zip(registers[-1], starts, strict=True):
                T.buffer_store(register, start, [Ramp(0, 1, self.lanes)])
        return registers

    def _constant(self, buffer: Any, quantization_group: Any, vector: int) -> Any:
        """A vector of a [groups, channels] constant, padded to whole panels by `padded_channels`."""
        return buffer[quantization_group, Ramp(self.column + vector * self.lanes, 1, self.lanes)]

    def _load(self, register: Any) -> Any:
        return register[Ramp(0, 1, self.lanes)]

    # ---- the reduction ----

    def _window(self, sums: list[list[Any]]) -> None:
        """All window positions and channels; the positions of a row are one run where they are contiguous."""
        product, window, layout = self.product, self.product.window, self.product.layout
        kernel_h, kernel_w = window.kernel
        steps = product.steps_per_tap
        merged = window.groups == 1 and (window.dilation[1] == 1 or kernel_w == 1)
        with loop(kernel_h) as y:
            row = y * (window.dilation[0] * layout.row)
            if merged:
                self._run(sums, row, y * (kernel_w * steps), kernel_w * steps)
                return
            with loop(kernel_w) as x:
                at = row + x * (window.dilation[1] * layout.pixel)
                self._run(sums, at, (y * kernel_w + x) * steps, steps)

    def _run(self, sums: list[list[Any]], offset: Any, first_step: Any, steps: int) -> None:
        """`steps` consecutive steps: of activations from byte `offset` of the window, of weights from `first_step`."""
        start = self.base + offset
        start = start if isinstance(start, int) else T.bind(start)
        width = self.instruction.vector_bytes
        size = self.vectors * width
        if self.product.inline:
            size //= self.product.panels.per_chunk
        weights = self.weights + first_step * size
        weights = weights if isinstance(weights, int) else T.bind(weights)
        with loop(steps) as step:
            self._step(sums, start, weights, step, size)

    def _step(self, sums: list[list[Any]], start: Any, weights: Any, step: Any, size: int) -> None:
        """One step: every position's four bytes times the weights of every vector."""
        width = self.instruction.vector_bytes
        operands = self._operands(weights + step * size)
        for index, position in enumerate(self.offsets):
            at = start + step * STEP_BYTES + position
            word = reinterpret("int32", self.product.read[Ramp(at, 1, STEP_BYTES)])
            broadcast = T.bind(reinterpret(f"int8x{width}", splat(word, self.lanes)))
            for vector, operand in enumerate(operands):
                register = sums[index][vector]
                total = self.instruction.accumulate(self._load(register), broadcast, operand)
                T.buffer_store(register, total, [Ramp(0, 1, self.lanes)])

    def _operands(self, at: Any) -> list[Any]:
        """The weight vectors of one step, whose bytes start at `at`."""
        width = self.instruction.vector_bytes
        product = self.product
        if not product.inline:
            return [T.bind(product.operand[Ramp(at + v * width, 1, width)]) for v in range(self.vectors)]
        chunks = self.vectors // product.panels.per_chunk
        decoded = [decode_chunk(product.panels, product.weight, at + chunk * width) for chunk in range(chunks)]
        return [T.bind(vector) for vectors in decoded for vector in vectors]

    def _by_quantization_group(self) -> list[list[Any]]:
        """The sum of each group of weights times its scale, summed in float32 in the order of the groups."""
        product, window, layout = self.product, self.product.window, self.product.layout
        totals = self._sums(lambda vector: splat(T.float32(0), self.lanes), "float32")
        elements = STEP_BYTES // self.instruction.widened
        group_steps = product.operands.group_elements // elements
        whole_groups, rest = divmod(product.steps_per_tap, group_steps)
        per_tap = whole_groups + (rest > 0)
        with loop(window.kernel[0]) as y, loop(window.kernel[1]) as x:
            at = y * (window.dilation[0] * layout.row) + x * (window.dilation[1] * layout.pixel)
            tap = y * window.kernel[1] + x
            if whole_groups:
                with loop(whole_groups) as index:
                    step = tap * product.steps_per_tap + index * group_steps
                    offset = at + index * (group_steps * STEP_BYTES)
                    self._add_group(totals, tap * per_tap + index, offset, step, group_steps)
            if rest:
                step = tap * product.steps_per_tap + whole_groups * group_steps
                offset = at + whole_groups * group_steps * STEP_BYTES
                self._add_group(totals, tap * per_tap + whole_groups, offset, step, rest)
        return totals

    def _add_group(self, totals: list[list[Any]], group: Any, offset: Any, step: Any, steps: int) -> None:
        product = self.product
        group = group if isinstance(group, int) else T.bind(group)
        sums = self._sums(lambda vector: self._constant(product.start, group, vector))
        self._run(sums, offset, step, steps)
        for vector in range(self.vectors):
            scale = T.bind(self._constant(product.scale, group, vector))
            for index in range(len(self.offsets)):
                real = T.Cast(f"float32x{self.lanes}", self._load(sums[index][vector]))
                total = self._load(totals[index][vector]) + unfused(real * scale)
                T.buffer_store(totals[index][vector], total, [Ramp(0, 1, self.lanes)])

    # ---- the epilogue ----

    def _store(self, registers: list[Any], row: Any) -> None:
        finish = self.product.operands.finish or (lambda total: total)
        for vector, register in enumerate(registers):
            count = min(self.lanes, self.columns - vector * self.lanes)
            if count <= 0:
                break

            def load(offset: int, lanes: int, register: Any = register) -> Any:
                return finish(register[offset] if lanes == 1 else register[Ramp(offset, 1, lanes)])

            self.product.epilogue.emit_channels(load, row, self.column + vector * self.lanes, count, self.lanes)


class VectorProduct(ProductBuilder):
    """The product builder with vector registers in its inner loops."""

    def register_tile(self, panel: PanelTile) -> RegisterTile:
        return RegisterTile(self, panel)


def vector_row(
    serves: Any,
    refuses: Callable[[Any], str | None],
    operands_of: Callable[[Any, Instruction], Operands],
    name: str,
    needs: set[str],
    prefer: int,
    instruction: Callable[[Any], Instruction],
) -> None:
    """Register a row that multiplies by the instruction that an operator gets, on the operands that go with it."""

    def build(op: Any) -> Built:
        chosen = instruction(op)
        return VectorProduct(op, chosen, operands_of(op, chosen)).build()

    kernel(name, serves=serves, needs=needs, prefer=prefer, refuses=refuses)(build)
