"""Give an exported model the bodies of the functions that it calls."""

from __future__ import annotations

import onnx

from subbyte.dialect import DOMAIN, DOMAIN_VERSION, function, function_names
from subbyte.errors import ExportError


def append_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give `model`, in place, the bodies of the subbyte functions that its graph calls, and import the domain.

    Raises ExportError when the graph calls a function that the library does not have.
    """
    used = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    unknown = [name for name in used if name not in function_names()]
    if unknown:
        raise ExportError(
            f"the graph calls {DOMAIN}.{unknown[0]}, which the function library lacks; add it to subbyte/dialect.py"
        )
    kept = [f for f in model.functions if f.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend([*kept, *(function(name) for name in used)])
    if used and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    return model
