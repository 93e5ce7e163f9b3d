"""Which calls of a file are calls of the dialect: by name, version of the domain, body and inputs. Others are inlined.

Another tool may have written a different `subbyte.Quantize`, so names are not enough. An inlined function is computed
as the file defines it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.inliner

from subbyte.dialect.function import find
from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION
from subbyte.dialect.payloads import with_payloads, without_payloads
from subbyte.dialect.walk import all_nodes, every_node, label_of
from subbyte.errors import ModelError, one_line
from subbyte.files import limits

STANDARD_DOMAINS = ("", "ai.onnx")
# Domains whose operators engines implement; a function that the file defines there takes precedence.
ENGINES_OWN = ("com.microsoft", "com.ms.", "ai.onnx", "qonnx.")

Id = tuple[str, str, str]  # domain, name, overload
Body = tuple[Any, ...]


def opset_of(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    """The opset of ONNX's own operators; 1 where none is given."""
    return max((int(entry.version) for entry in imports if entry.domain in STANDARD_DOMAINS), default=1)


def foreign_functions(model: onnx.ModelProto) -> tuple[str, ...]:
    """A message for each function of domain `subbyte` that is not of the dialect, or is not called as such.

    Raises ModelError for a function in the standard domain, which would replace an ONNX operator, and for a call in
    domain `subbyte` whose body is not in the file.
    """
    _refuse_standard(model)
    _refuse_without_body(model)
    known = _of_the_dialect(model)
    version = _version(model)
    lines = []
    for function in model.functions:
        if function.domain != DOMAIN:
            continue
        name = f"{DOMAIN}.{function.name}" + (f":{function.overload}" if function.overload else "")
        why = ""
        if _id(function) not in known:
            why = "its body is not that of the dialect"
            if find(function.name) is None:
                why = "the dialect has no function of that name"
            elif not _bodies(function.name, version):
                why = f"version {version} of the domain is not known"
        elif any(not _complete(node, function) for node in _calls(model, _id(function))):
            why = "a call omits inputs, or has attributes"
        if why:
            lines.append(f"function {name}: {why}, so it is inlined, and computed as the file defines it")
    return tuple(lines)


def inline_foreign_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all functions inlined but those of the dialect that are called with all inputs.

    The same object if nothing is to be inlined. Raises ModelError as `foreign_functions`, and for a function that
    cannot be inlined.
    """
    _refuse_standard(model)
    _refuse_without_body(model)
    known = _of_the_dialect(model)
    partly = any(not _complete(node, function) for id_, function in known.items() for node in _calls(model, id_))
    if len(known) == len(model.functions) and not partly:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for id_, function in known.items():
        calls = [node for node in _calls(made, id_) if not _complete(node, function)]
        if calls:  # these calls get an overload of their own, which is inlined
            other = made.functions.add()
            other.CopyFrom(function)
            other.overload = "as called"
            for node in calls:
                node.overload = other.overload
    others = [function for function in made.functions if _id(function) not in known]
    del made.functions[:]
    made.functions.extend(_converted_to_opset_of(made, function) for function in others)
    try:
        made = with_payloads(onnx.inliner.inline_local_functions(without_payloads(made)), made)
    except Exception as error:  # the inliner has no common base for its errors
        raise ModelError(
            f"the functions of the file cannot be inlined: {one_line(error)}; export it without them"
        ) from error
    called = {node.op_type for node in every_node(made) if node.domain == DOMAIN}
    made.functions.extend(function for function in known.values() if function.name in called)
    return made


def expanded(model: onnx.ModelProto) -> tuple[int, int]:
    """The number of nodes and bytes of the graph if all functions were inlined, computed without inlining them.

    Raises ModelError for recursive functions, and for calls nested deeper than `limits.CALL_DEPTH`.
    """
    bodies = {_id(function): function.node for function in model.functions}
    sizes: dict[Id, _Size] = {}
    for root in bodies:
        path = {root: _called(bodies[root], bodies)} if root not in sizes else {}
        while path:
            at = next(reversed(path))
            inner = next((id_ for id_ in path[at] if id_ not in sizes), None)
            if inner in path:
                raise ModelError(
                    f"function {at[0]}.{at[1]} calls itself, directly or through others; export without recursion"
                )
            if inner is not None:
                path[inner] = _called(bodies[inner], bodies)
                continue
            sizes[at] = _size(bodies[at], sizes)
            del path[at]
            if sizes[at].depth > limits.CALL_DEPTH:
                raise ModelError(
                    f"calls of function {at[0]}.{at[1]} are nested {sizes[at].depth} deep, the limit is "
                    f"{limits.CALL_DEPTH}; export the model without functions"
                )
    total = _size(model.graph.node, sizes)
    return total.nodes, total.nbytes


@dataclass(frozen=True)
class _Size:
    """Size of nodes if all functions were inlined."""

    nodes: int
    nbytes: int
    depth: int  # of nested calls


def _called(nodes: Iterable[onnx.NodeProto], bodies: Collection[Id]) -> Iterator[Id]:
    """The functions that nodes call, without repetition."""
    found = ((node.domain, node.op_type, node.overload) for node in all_nodes(nodes))
    return iter(dict.fromkeys(id_ for id_ in found if id_ in bodies))


def _size(nodes: Iterable[onnx.NodeProto], sizes: dict[Id, _Size]) -> _Size:
    found = [sizes.get((node.domain, node.op_type, node.overload)) for node in all_nodes(nodes)]
    calls = [size for size in found if size is not None]
    return _Size(
        len(found) - len(calls) + sum(size.nodes for size in calls),
        sum(node.ByteSize() for node in nodes) + sum(size.nbytes for size in calls),
        1 + max((size.depth for size in calls), default=0),
    )


def _refuse_standard(model: onnx.ModelProto) -> None:
    for function in model.functions:
        if function.domain in STANDARD_DOMAINS:
            raise ModelError(
                f"the file defines a function '{function.name}' in the standard domain, which is reserved for the "
                "operators of ONNX: move its definition and its calls to another domain"
            )


def _refuse_without_body(model: onnx.ModelProto) -> None:
    bodies = {_id(function) for function in model.functions}
    for node in every_node(model):
        if node.domain == DOMAIN and (node.domain, node.op_type, node.overload) not in bodies:
            raise ModelError(
                f"node '{label_of(node)}' calls {DOMAIN}.{node.op_type} of version "
                f"{_version(model)} of the dialect, whose body is not in the file; this subbyte reads "
                f"versions 1 to {DOMAIN_VERSION}: export the model again"
            )


def _of_the_dialect(model: onnx.ModelProto) -> dict[Id, onnx.FunctionProto]:
    version = _version(model)
    return {
        _id(function): function
        for function in model.functions
        if function.domain == DOMAIN
        and not function.overload
        and normal_form(function) in map(normal_form, _bodies(function.name, version))
    }


def _version(model: onnx.ModelProto) -> int:
    return max((int(entry.version) for entry in model.opset_import if entry.domain == DOMAIN), default=DOMAIN_VERSION)


def _bodies(name: str, version: int) -> tuple[onnx.FunctionProto, ...]:
    function = find(name)
    return () if function is None else function.bodies(version)


def _id(function: onnx.FunctionProto) -> Id:
    return function.domain, function.name, function.overload


def _complete(node: onnx.NodeProto, function: onnx.FunctionProto) -> bool:
    return len(node.input) == len(function.input) and all(node.input) and not node.attribute


def _calls(model: onnx.ModelProto, id_: Id) -> Iterator[onnx.NodeProto]:
    return (node for node in every_node(model) if (node.domain, node.op_type, node.overload) == id_)


def _converted_to_opset_of(model: onnx.ModelProto, function: onnx.FunctionProto) -> onnx.FunctionProto:
    """The function in the opset of the model, as the inliner assumes; ModelError if an operator changes its meaning."""
    target = opset_of(model.opset_import)
    source = opset_of(function.opset_import)
    if source == target:
        return function
    for node in function.node:
        if node.domain in STANDARD_DOMAINS and _since(node, source) != _since(node, target):
            raise ModelError(
                f"function {function.domain}.{function.name} has opset {source}, but the model has opset {target}, "
                f"in which {node.op_type} has another definition: export both in one opset"
            )
    for entry in function.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            entry.version = target
    return function


def _since(node: onnx.NodeProto, opset: int) -> int:
    """The opset that introduced the operator's definition in `opset`; 0 if `opset` does not have the operator."""
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, "").since_version)
    except onnx.defs.SchemaError:
        return 0


# ---- comparing bodies ----


def normal_form(function: onnx.FunctionProto) -> Body:
    """A function without the names of its values and the storage of its constants; equal normal forms compute the same.

    Operators have the opset that introduced their definition; attributes equal to their default are omitted.
    """
    opset = opset_of(function.opset_import)
    number = {name: index for index, name in enumerate(function.input)}
    nodes = []
    for node in function.node:
        inputs = tuple(number.get(name, -1) if name else None for name in node.input)
        for name in filter(None, node.output):
            number[name] = len(number)
        standard = node.domain in STANDARD_DOMAINS
        meaning = ("", node.op_type, _since(node, opset)) if standard else (node.domain, node.op_type, node.overload)
        outputs = tuple(bool(name) for name in node.output)
        nodes.append((meaning, inputs, outputs, _attributes(node, opset)))
    declared = (tuple(function.attribute), tuple(a.name for a in function.attribute_proto))
    return len(function.input), declared, tuple(nodes), tuple(number.get(name, -1) for name in function.output)


def _attributes(node: onnx.NodeProto, opset: int) -> tuple[Any, ...]:
    defaults: dict[str, Any] = {}
    if node.domain in STANDARD_DOMAINS and _since(node, opset):
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        defaults = {name: _value(known.default_value) for name, known in schema.attributes.items()}
    found = ((attribute.name, _value(attribute)) for attribute in node.attribute)
    return tuple(sorted((name, value) for name, value in found if defaults.get(name) != value))


def _value(attribute: onnx.AttributeProto) -> tuple[Any, ...]:
    if attribute.type == onnx.AttributeProto.TENSOR and not attribute.ref_attr_name:
        array = onnx.numpy_helper.to_array(attribute.t)
        return "tensor", attribute.t.data_type, tuple(attribute.t.dims), array.tobytes()
    plain = onnx.AttributeProto()
    plain.CopyFrom(attribute)
    plain.ClearField("name")
    plain.ClearField("doc_string")
    return "attribute", plain.SerializeToString(deterministic=True)
