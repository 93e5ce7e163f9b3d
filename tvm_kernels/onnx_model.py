"""Read an ONNX file that may be damaged or hostile, check it, and bring it to the form that lowering knows.

What leaves here is valid ONNX with static shapes, sorted, in opset 13 or later, without functions other than our own
of domain `subbyte`. Everything else is refused with a ModelError that says what to do.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
import onnx.checker
import onnx.external_data_helper
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError

from subbyte.dialect import DOMAIN, function_names
from subbyte.errors import ModelError, UsageError
from subbyte.file_kinds import BUNDLE, CHECKPOINT, ONNX, kind_of
from subbyte.function_calls import STANDARD_DOMAINS, foreign_functions, inline_all_but_ours
from subbyte.runtime.manifest import MAX_RANK

MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
MAX_EXTERNAL_BYTES = 16 << 30
MAX_NODES = 200_000
MAX_ELEMENTS = 1 << 31  # of one tensor
OLDEST_OPSET = 13
NEWEST_OPSET = onnx.defs.onnx_opset_version()  # of the installed onnx, whose schemas give shapes and bodies

# Operators of other domains that the rewrite table knows.
FOREIGN_OPERATORS = {
    ("com.microsoft", "MatMulNBits"),
    ("com.microsoft", "Gelu"),
    ("com.microsoft", "QuantizeLinear"),
    ("com.microsoft", "DequantizeLinear"),
    ("qonnx.custom_op.general", "Quant"),
    ("qonnx.custom_op.general", "BipolarQuant"),
}
INPUT_TYPES = {"float32", "uint8", "int8", "int32", "int64"}  # those of runtime/c/subbyte.h


def load_model(source: str | Path | onnx.ModelProto, notes: list[str] | None = None) -> onnx.ModelProto:
    """A checked, normalised model from a file or a model in memory; `notes` gets a line for what is not as it is named.

    Raises UsageError for a missing file and ModelError for a file that is not ONNX, truncated, too large, cyclic, of
    unknown operators, with dynamic shapes, or with external data outside of its folder.
    """
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
    else:
        model = _read(Path(source))
    if not model.graph.node:
        raise ModelError("the model's graph has no nodes: an empty or truncated file; export it again")
    if not model.graph.output:
        raise ModelError("the graph has no outputs, so it would compute nothing; export it with its results as outputs")
    if len(model.graph.node) > MAX_NODES:
        raise ModelError(f"the graph has {len(model.graph.node)} nodes; the compiler accepts at most {MAX_NODES}")
    _check_text(model)
    _check_opset(model)
    _check_operators(model)
    _check_names(model.graph)
    _check_inputs(model.graph)
    _sort(model.graph)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"not valid ONNX: {_first_line(error)}. Export the model again") from error
    if notes is not None:
        notes.extend(foreign_functions(model))
    return _normalised(model)


# ---- reading ----


def _read(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise UsageError(_other(path))
    if not path.is_file():
        raise UsageError(f"no such file: {path}. Give the path of an ONNX model")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ModelError(
            f"{path.name} has {size} bytes; an ONNX file holds at most {MAX_FILE_BYTES}: keep weights as external data"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, UnicodeDecodeError) as error:
        raise ModelError(_other(path)) from error
    if not model.ir_version or not model.HasField("graph"):
        raise ModelError(_other(path))
    _load_external(model, path)
    return model


def _other(path: Path) -> str:
    """What to say of a file or folder that is not an ONNX model."""
    kind = kind_of(path)
    if kind is None or kind == ONNX:
        return f"{path.name} is not an ONNX file, or it is truncated or damaged; copy or export it again"
    if kind == BUNDLE:
        return f"{path.name} is not an ONNX file, it is {kind}: compiled already. `subbyte run` and `bench` take it"
    do = f"export it first: `subbyte export {path} -o model.onnx`" if kind == CHECKPOINT else "expected a .onnx file"
    return f"{path.name} is not an ONNX file, it is {kind}; {do}"


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Bring external data in; every location must lie inside of the model's folder."""
    folder = path.resolve().parent
    total = 0
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        place = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not place.is_relative_to(folder):
            raise ModelError(
                f"tensor '{tensor.name}' wants external data at '{location}', outside of the model's folder {folder}; "
                "put the data beside the model and give a relative path"
            )
        if not place.is_file():
            raise ModelError(f"tensor '{tensor.name}' wants external data in '{location}', which is not in {folder}")
        total += place.stat().st_size
        if total > MAX_EXTERNAL_BYTES:
            raise ModelError(f"external data of more than {MAX_EXTERNAL_BYTES} bytes")
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (ValueError, OSError, onnx.checker.ValidationError) as error:
            raise ModelError(f"external data of '{tensor.name}' cannot be read: {_first_line(error)}") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


# ---- checking ----


def _check_opset(model: onnx.ModelProto) -> None:
    opset = _opset(model)
    if opset > NEWEST_OPSET:
        raise ModelError(
            f"the model is in opset {opset}; opsets up to {NEWEST_OPSET} are known to the installed onnx "
            f"{onnx.__version__}. Export with an opset from {OLDEST_OPSET} to {NEWEST_OPSET}"
        )


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), default=1)


def _check_operators(model: onnx.ModelProto) -> None:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    own = {(f.domain, f.name) for f in model.functions}
    bodies = [*model.graph.node, *(node for f in model.functions for node in f.node)]
    for node in bodies:
        if node.domain in STANDARD_DOMAINS:
            if not onnx.defs.has(node.op_type, opsets.get("", opsets.get("ai.onnx", OLDEST_OPSET)), ""):
                names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
                raise ModelError(_unknown(node, f"ONNX has no operator '{node.op_type}'", names))
        elif (node.domain, node.op_type) not in own | FOREIGN_OPERATORS:
            if node.domain == DOMAIN and node.op_type in function_names():
                raise ModelError(
                    f"node '{node.name or node.op_type}' calls {DOMAIN}.{node.op_type}, whose body is not in the file; "
                    "export the model again"
                )
            known = {name for domain, name in own | FOREIGN_OPERATORS if domain == node.domain}
            raise ModelError(_unknown(node, f"unknown operator {node.domain}.{node.op_type}", known))


def _unknown(node: onnx.NodeProto, what: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(node.op_type, sorted(known), n=1, cutoff=0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return (
        f"{what} (node '{node.name or node.output[0]}').{hint} Export with standard ONNX operators, or give the "
        "operator a body as a model-local function"
    )


def _check_text(model: onnx.ModelProto) -> None:
    """Every name is text that C and JSON can hold."""
    graph = model.graph
    nodes = [*graph.node, *(node for function in model.functions for node in function.node)]
    places: list[tuple[str, Iterable[str]]] = [
        ("the graph's name", [graph.name]),
        (
            "a name of an input, output or initializer",
            [v.name for v in (*graph.input, *graph.output, *graph.initializer)],
        ),
        ("the metadata", [text for entry in model.metadata_props for text in (entry.key, entry.value)]),
        ("a function's name", [text for function in model.functions for text in (function.domain, function.name)]),
    ]
    for index, node in enumerate(nodes):
        places.append((f"a name of node {index}", (node.name, node.op_type, node.domain, *node.input, *node.output)))
    for place, texts in places:
        for text in texts:
            if isinstance(text, bytes):  # protobuf hands out what is not UTF-8 as it is
                raise ModelError(f"{place} is not UTF-8: {text!r}; rename it, or export the model again")
            if "\0" in text:
                raise ModelError(f"{place} holds a NUL character: {text!r}; rename it, or export the model again")


def _check_names(graph: onnx.GraphProto) -> None:
    """Every input of every node is made by something."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        made.update(node.output)
    for node in graph.node:
        for name in node.input:
            if name and name not in made:
                raise ModelError(
                    f"node '{node.name or node.op_type}' reads '{name}', which is no input, initializer or output of "
                    "another node; the file lacks an initializer"
                )
    for output in graph.output:
        if output.name not in made:
            raise ModelError(f"the graph's output '{output.name}' is made by no node")


def _check_inputs(graph: onnx.GraphProto) -> None:
    constants = {tensor.name for tensor in graph.initializer}
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


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in topological order, in place; raises ModelError on a cycle."""
    producer: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name:
                if name in producer:
                    raise ModelError(f"value '{name}' is made by two nodes")
                producer[name] = index
    waiting = [{producer[i] for i in node.input if i in producer} for node in graph.node]
    users: list[list[int]] = [[] for _ in waiting]
    for index, parents in enumerate(waiting):
        for parent in parents:
            users[parent].append(index)
    ready = [index for index, parents in enumerate(waiting) if not parents]
    ordered: list[int] = []
    while ready:
        index = heapq.heappop(ready)  # the file's own order where it is sorted
        ordered.append(index)
        for user in users[index]:
            waiting[user].discard(index)
            if not waiting[user]:
                heapq.heappush(ready, user)
    if len(ordered) < len(waiting):
        at = next(index for index, parents in enumerate(waiting) if parents)
        seen: set[int] = set()
        while at not in seen:  # what waits is on a cycle or behind one: its inputs lead there
            seen.add(at)
            at = min(waiting[at])
        node = graph.node[at]
        raise ModelError(f"the graph has a cycle through node '{node.name or node.op_type}'; ONNX allows none")
    if ordered != sorted(ordered):
        nodes = [graph.node[index] for index in ordered]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


# ---- normalising ----


def _normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = _opset(model)
    if opset < OLDEST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OLDEST_OPSET)
        except Exception as error:  # the converter raises whatever it likes
            raise ModelError(
                f"opset {opset} is older than {OLDEST_OPSET} and cannot be converted ({_first_line(error)}); "
                f"export with opset {OLDEST_OPSET} or later"
            ) from error
    return inline_all_but_ours(model)


def body_of(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], opset: int) -> list[onnx.NodeProto]:
    """The nodes that compute a standard node with inputs of these types, by the function body in its ONNX schema.

    Empty for an operator that has none in this opset, or none for these types.
    """
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


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
