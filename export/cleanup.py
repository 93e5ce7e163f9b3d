"""Cleans up the output of torch's exporter: names from module paths, no metadata, static shapes, fixed versions.

A node is named after its module (`/stem/0/Conv`), its outputs after the node (`/stem/0/Conv_output_0`), and a constant
after its first consumer and the input's name there (`/stem/0/DecodeTernary.packed`); parameters keep their torch names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from subbyte import __version__
from subbyte.dialect.function import get
from subbyte.dialect.names import DOMAIN, IR_VERSION, OPSET
from subbyte.errors import ExportError
from subbyte.export.functions import append_functions

_SCOPES = "pkg.torch.onnx.name_scopes"
_CONTROL_FLOW = ("If", "Loop", "Scan")


def clean(
    model: ir.Model, *, input_names: Sequence[str], output_names: Sequence[str], parameters: Collection[str]
) -> onnx.ModelProto:
    """The final ModelProto from the output of torch.onnx.export; changes `model`. `parameters`: names to keep.

    Raises ExportError for control flow, a dynamic shape, or a call of an unknown `subbyte` function.
    """
    paths = {id(node): _module_path(node) for node in model.graph}
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.IdentityEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    _make_outputs_distinct(model.graph)
    passes.DeduplicateInitializersPass()(model)
    _name(model, paths, input_names, output_names, parameters)
    passes.ClearMetadataAndDocStringPass()(model)
    for value in (
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(v for n in model.graph for v in n.outputs),
    ):
        value.metadata_props.clear()
    passes.RemoveUnusedOpsetsPass()(model)
    _refuse(model)
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION
    proto = ir.to_proto(model)
    proto.graph.name = "main_graph"
    proto.producer_name, proto.producer_version = "subbyte", __version__
    stored = {tensor.name for tensor in proto.graph.initializer}  # initializers contain their shapes
    shapes = [info for info in proto.graph.value_info if info.name not in stored]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(shapes)
    return append_functions(proto)


def _module_path(node: ir.Node) -> str:
    """`/stages/1/0/conv1` for a node that was traced in module stages.1.0.conv1; empty for the root module."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))
    inner = scopes[-2] if len(scopes) > 1 else ""
    return "".join(f"/{part}" for part in inner.split(".") if part)


def _make_outputs_distinct(graph: ir.Graph) -> None:
    """Insert an Identity for an output that is an input, a constant or an earlier output: each needs its own name."""
    seen: set[int] = set()
    for index, value in enumerate(graph.outputs):
        if value.producer() is None or id(value) in seen:
            copy = ir.node("Identity", [value])
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
        seen.add(id(graph.outputs[index]))


def _name(
    model: ir.Model,
    paths: dict[int, str],
    input_names: Sequence[str],
    output_names: Sequence[str],
    parameters: Collection[str],
) -> None:
    taken: set[str] = set()
    graph = model.graph
    for value, name in [*zip(graph.inputs, input_names, strict=False), *zip(graph.outputs, output_names, strict=False)]:
        value.name = name
    fixed = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        path = paths.get(id(node), "")
        weight = node.inputs[1] if node.op_type in ("Conv", "Gemm", "MatMul") and len(node.inputs) > 1 else None
        if weight is not None and weight.name in graph.initializers and str(weight.name).endswith(".weight"):
            # a folded batch norm has replaced the path of the convolution
            path = "".join(f"/{part}" for part in str(weight.name).removesuffix(".weight").split("."))
        node.name = _unused(f"{path}/{node.op_type}", taken)
        for index, value in enumerate(node.outputs):
            if id(value) not in fixed:
                value.name = f"{node.name}_output_{index}"
    named = set(taken)
    for node in graph:
        for index, used in enumerate(node.inputs):
            if used is None or used.name not in graph.initializers or id(used) in fixed:
                continue
            fixed.add(id(used))
            if used.name not in parameters:
                initializer = graph.initializers.pop(str(used.name))
                initializer.name = _unused(f"{node.name}.{_role(node, index)}", named)
                graph.register_initializer(initializer)


def _role(node: ir.Node, index: int) -> str:
    """The name of an input in the definition of its operator: `packed`, `axes`, `B`, ..."""
    if node.domain == DOMAIN:
        return str(get(node.op_type).proto.input[index])
    try:
        formal = onnx.defs.get_schema(node.op_type, OPSET, node.domain).inputs
    except onnx.defs.SchemaError:
        return f"input_{index}"
    return str(formal[min(index, len(formal) - 1)].name)


def _unused(name: str, taken: set[str]) -> str:
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def _refuse(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type in _CONTROL_FLOW:
            raise ExportError(
                f"'{node.name}': the model has control flow ({node.op_type}) that depends on its input; "
                f"export supports only graphs without control flow"
            )
        for value in node.outputs:
            shape = value.shape
            if shape is None or not all(isinstance(size, int) for size in shape):
                raise ExportError(f"'{node.name}': the shape of its output is {shape}, expected a static shape")
