"""Adds the functions that an exported model calls."""

from __future__ import annotations

import onnx

from subbyte.dialect.function import find
from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION
from subbyte.errors import ExportError


def append_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add, in place, the `subbyte` functions that the graph of `model` calls, and import the domain.

    Raises ExportError for a call of an unknown function.
    """
    used = {name: find(name) for name in sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})}
    unknown = [name for name, function in used.items() if function is None]
    if unknown:
        raise ExportError(f"the graph calls {DOMAIN}.{unknown[0]}, which the dialect does not have; add it to dialect/")
    kept = [f for f in model.functions if f.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend([*kept, *(function.proto for function in used.values() if function)])
    if used and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    return model
