"""Normalises an ONNX model that was loaded and checked, for lowering.

The result is valid ONNX with static shapes, sorted, in opset 13 or later, without functions other than those of domain
`subbyte`. Everything else is refused with a ModelError that says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.inliner
import onnx.version_converter

from subbyte.dialect.function_calls import (
    STANDARD_DOMAINS,
    foreign_functions,
    inline_foreign_functions,
    opset_of,
)
from subbyte.dialect.known_operators import unknown_nodes
from subbyte.dialect.names import DOMAIN
from subbyte.dialect.payloads import with_payloads, without_payloads
from subbyte.dialect.walk import every_node
from subbyte.errors import ModelError, one_line
from subbyte.onnx_files.checks import OLDEST_OPSET, unknown_operators
from subbyte.onnx_files.loader import Source, naming, open_onnx
from subbyte.runtime.manifest import MAX_RANK, MAX_TENSORS, MODEL_DTYPES
from subbyte.tvm_kernels import recurrent
from subbyte.tvm_kernels.foreign_reference import OPERATORS

# Operators of other domains that the rewrite table knows.
FOREIGN_OPERATORS = {(operator.op_domain, operator.__name__) for operator in OPERATORS if operator.op_domain}
INPUT_TYPES = set(MODEL_DTYPES)


def load_model(source: Source, notes: list[str] | None = None) -> onnx.ModelProto:
    """A checked, normalised model, not to be changed; `notes` gets an entry for each function that is not as named.

    Raises UsageError and ModelError as `open_onnx`, and ModelError for operators of other domains that are unknown,
    inputs of a type, rank or dynamic shape that is not compiled, and what cannot be normalised.
    """
    file = open_onnx(source)
    with naming(file.path):
        _check_operators(file.model)
        _check_inputs(file.model.graph)
        if notes is not None:
            notes.extend(foreign_functions(file.model))
        return _normalised(file.model)


# ---- checking ----


def _check_operators(model: onnx.ModelProto) -> None:
    """Operators of ONNX are known; those of other domains are functions of the file, or in the rewrite table."""
    known = {(f.domain, f.name) for f in model.functions} | FOREIGN_OPERATORS
    nodes = list(every_node(model))
    foreign = [node for node in nodes if node.domain not in (*STANDARD_DOMAINS, DOMAIN)]
    unknown = [node for node in foreign if (node.domain, node.op_type) not in known]
    unknown += [node for node in unknown_nodes(nodes) if node.domain in STANDARD_DOMAINS]
    if unknown:
        raise unknown_operators(unknown, "unknown operator", {f"{domain}.{name}" for domain, name in known})


def _check_inputs(graph: onnx.GraphProto) -> None:
    for sparse in graph.sparse_initializer:
        raise ModelError(f"initializer '{sparse.values.name}' is sparse, only dense ones are compiled; export it dense")
    constants = {tensor.name for tensor in graph.initializer}
    inputs = sum(value.name not in constants for value in graph.input)
    for side, count in (("inputs", inputs), ("outputs", len(graph.output))):
        if count > MAX_TENSORS:
            raise ModelError(f"the graph has {count} {side}, a bundle at most {MAX_TENSORS}; join them with Concat")
    for value in graph.input:
        if value.name in constants:
            continue
        if not value.type.HasField("tensor_type"):
            raise ModelError(f"input '{value.name}' is not a tensor; only tensors can be inputs")
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "no type"
        if dtype not in INPUT_TYPES:
            raise ModelError(f"input '{value.name}' is {dtype}; inputs are one of {', '.join(sorted(INPUT_TYPES))}")
        if not kind.HasField("shape"):
            raise ModelError(f"input '{value.name}' has no shape; export the model with a fixed shape")
        if len(kind.shape.dim) > MAX_RANK:
            raise ModelError(f"input '{value.name}' has {len(kind.shape.dim)} axes; at most {MAX_RANK} are handled")
        sizes: list[str] = []
        for index, dim in enumerate(kind.shape.dim):
            sizes.append(str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?")
            if dim.HasField("dim_value") and dim.dim_value < 1:
                raise ModelError(
                    f"input '{value.name}' has size {dim.dim_value} along axis {index}; at least 1 is needed"
                )
        for index, dim in enumerate(kind.shape.dim):
            if not dim.HasField("dim_value"):
                raise ModelError(
                    f"input '{value.name}' has a dynamic shape [{', '.join(sizes)}]: axis {index} is not fixed. Export "
                    "with a fixed shape, or fix it with: python -m onnxruntime.tools.make_dynamic_shape_fixed "
                    f"--input_name {value.name} --input_shape 1,... model.onnx fixed.onnx"
                )


# ---- normalising ----


def _normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    model = inline_foreign_functions(model)  # before the conversion, which loses functions
    opset = opset_of(model.opset_import)
    if opset >= OLDEST_OPSET:
        return model
    try:
        return with_payloads(onnx.version_converter.convert_version(without_payloads(model), OLDEST_OPSET), model)
    except Exception as error:  # the converter raises whatever it likes
        raise ModelError(
            f"opset {opset} is older than {OLDEST_OPSET} and cannot be converted ({one_line(error)}); "
            f"export with opset {OLDEST_OPSET} or later"
        ) from error


def body_of(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], opset: int) -> list[onnx.NodeProto]:
    """The nodes that compute a standard node with inputs of these types: the function body in its ONNX schema, or ours.

    Empty for an operator that has none in this opset, or none for these types.
    """
    if node.op_type in recurrent.CELLS:
        return recurrent.body(node, types)
    schema = onnx.defs.get_schema(node.op_type, opset, "") if onnx.defs.has(node.op_type, opset, "") else None
    if schema is None:
        return []
    whole, given = onnx.NodeProto(), {attribute.name for attribute in node.attribute}
    whole.CopyFrom(node)
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name and name not in given:  # bodies refer to them, and the inliner does not know
            whole.attribute.append(attribute.default_value)
    inputs = [onnx.helper.make_value_info(name, types[name]) for name in dict.fromkeys(node.input) if name]
    if "" in node.input:  # the inliner asks for the type of inputs that are left out, too
        inputs.append(onnx.helper.make_value_info("", onnx.helper.make_tensor_type_proto(1, [])))
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = onnx.helper.make_graph([whole], "one_node", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    wanted = [("", node.op_type)]
    try:
        inlined = onnx.inliner.inline_selected_functions(model, wanted, exclude=False, inline_schema_functions=True)
    except Exception:  # the inliner raises whatever it likes
        return []
    return [] if node.op_type in {inner.op_type for inner in inlined.graph.node} else list(inlined.graph.node)
