"""A table look-up: any function of one value in integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from subbyte.dialect import lookup as dialect
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.operators import Bias, Codes, Epilogue, Example, Fused, Scale, ToCodes, ToFloat, constant
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.rewrites.code_values import storage_of, to_codes
from subbyte.tvm_kernels.rewrites.kernel_node import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import EVERY, Any, Const, Op, Outcome
from subbyte.tvm_kernels.rewrites.register import rewrite


@dataclass(frozen=True, eq=False)
class Lookup(Fused):
    """uint8 [rows, channels] to table[byte], float32 [256], then the epilogue."""

    rows: int
    channels: int
    table: Array
    epilogue: Epilogue
    inputs = 1
    macs = 0

    @property
    def per_element(self) -> Mapping[str, float]:
        return {**dialect.Lookup.energy, **({} if self.stored() else super().per_element)}

    def resized(self, rows: int, channels: int) -> Lookup:
        return replace(self, rows=rows, channels=channels)

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        return self.epilogue.reference(self.table[inputs[0].reshape(self.rows, self.channels)], tensors)

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        table, codes = random.normal(size=256).astype(np.float32), random.integers(0, 256, (7, 13)).astype(np.uint8)
        epilogues = {
            "look-up": Epilogue(),
            "look-up of codes": Epilogue((Scale(constant(3)),), (ToFloat(), ToCodes(9.0, Codes(-128, 127, 128)))),
            "look-up and bias": Epilogue((Bias(constant(range(13))),)),
        }
        return [Example(cls(name, 7, 13, table, epilogue), (codes,)) for name, epilogue in epilogues.items()]

    def stored(self) -> list[Array] | None:
        """The stored value of each byte, an array [256] for each output; None where it depends on the position, too."""
        return self.epilogue.by_value(self.table)


@rewrite(
    "table look-up",
    stage="products",
    matches=Op(dialect.Lookup, Any("codes"), Const("table"), Const("low"), dtypes=EVERY),
)
def look_up(graph: Graph, node: Node, codes: str, table: Array, low: Array) -> Outcome:
    """The table, indexed by code in the file, becomes one indexed by byte."""
    value = graph.values[codes]
    storage = value.codes or storage_of(value.dtype)
    if storage is None:
        return f"'{codes}' is {value.storage.format if value.coded else value.dtype}; handled: codes of at most 8 bits"
    if table.shape != (256,) or table.dtype != np.float32:
        return f"its table is {table.dtype} {list(table.shape)}; handled: float32 [256]"
    if low.size != 1 or low.ndim > len(value.shape):
        return f"its lowest code has shape {list(low.shape)}; handled: one number"
    by_byte = dialect.Lookup.reference(storage.levels(np.arange(256)), table, low.reshape(()))[0]
    operator = Lookup(node.name, 0, 0, by_byte, Epilogue())
    own = codes if value.coded else to_codes(graph, codes, node)
    kernel_node(graph, node, operator, [own], None, "same")
    return True
