"""Which calls of a file are of our functions: by name, version of the domain, body and inputs; all others are inlined.

A name is no promise. Another tool may have written a `subbyte.Quantize` that computes something else, and what is
inlined is computed as the file says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.inliner

from subbyte import limits
from subbyte.dialect.function import find
from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION
from subbyte.errors import ModelError
from subbyte.onnx_walk import all_nodes, every_node
from subbyte.payloads import with_payloads, without_payloads

STANDARD_DOMAINS = ("", "ai.onnx")
# Under a name of these domains an engine runs its own kernel; a function that the file gives under it comes first.
ENGINES_OWN = ("com.microsoft", "com.ms.", "ai.onnx", "qonnx.")

Id = tuple[str, str, str]  # domain, name, overload
Body = tuple[Any, ...]


def foreign_functions(model: onnx.ModelProto) -> tuple[str, ...]:
    """A line for each function of our domain that is not ours, or is not called as ours.

    Raises ModelError for a function in the standard domain, which would hide an operator of ONNX, and for a call of our
    domain whose body is not in the file.
    """
    _refuse_standard(model)
    _refuse_without_body(model)
    ours = _ours(model)
    version = _version(model)
    lines = []
    for function in model.functions:
        if function.domain != DOMAIN:
            continue
        name = f"{DOMAIN}.{function.name}" + (f":{function.overload}" if function.overload else "")
        why = ""
        if _id(function) not in ours:
            why = "its body is not ours"
            if find(function.name) is None:
                why = "the dialect has no function of that name"
            elif not _bodies(function.name, version):
                why = f"version {version} of the domain is not known"
        elif any(not _complete(node, function) for node in _calls(model, _id(function))):
            why = "it is called without all of its inputs, or with attributes"
        if why:
            lines.append(f"function {name}: {why}, so it is computed as the file says, in standard operators")
    return tuple(lines)


def inline_all_but_ours(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose only functions are ours, called with all of their inputs; the same model if it is so already.

    Raises ModelError as `foreign_functions`, and for a function that cannot be inlined.
    """
    _refuse_standard(model)
    _refuse_without_body(model)
    ours = _ours(model)
    partly = any(not _complete(node, function) for id_, function in ours.items() for node in _calls(model, id_))
    if len(ours) == len(model.functions) and not partly:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for id_, function in ours.items():
        calls = [node for node in _calls(made, id_) if not _complete(node, function)]
        if calls:  # under an overload of its own, it is a function like any other
            other = made.functions.add()
            other.CopyFrom(function)
            other.overload = "as called"
            for node in calls:
                node.overload = other.overload
    others = [function for function in made.functions if _id(function) not in ours]
    del made.functions[:]
    made.functions.extend(_in_opset_of(made, function) for function in others)
    try:
        made = with_payloads(onnx.inliner.inline_local_functions(without_payloads(made)), made)
    except Exception as error:  # the inliner raises whatever it likes
        text = " ".join(str(error).split())[:300]
        raise ModelError(f"the file's functions cannot be inlined: {text}; export it without functions") from error
    called = {node.op_type for node in every_node(made) if node.domain == DOMAIN}
    made.functions.extend(function for function in ours.values() if function.name in called)
    return made


def expanded(model: onnx.ModelProto) -> tuple[int, int]:
    """How many nodes the graph has with every function in the place of its calls, and their bytes: nothing is expanded.

    Raises ModelError for functions that call themselves, or one another more than `limits.CALL_DEPTH` in a row.
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
                    f"function {at[0]}.{at[1]} calls functions that call others, {sizes[at].depth} in a row, at most "
                    f"{limits.CALL_DEPTH} are accepted; export the model without functions"
                )
    whole = _size(model.graph.node, sizes)
    return whole.nodes, whole.nbytes


@dataclass(frozen=True)
class _Size:
    """Of nodes, with every function in the place of its calls."""

    nodes: int
    nbytes: int
    depth: int  # functions in a row


def _called(nodes: Iterable[onnx.NodeProto], bodies: Collection[Id]) -> Iterator[Id]:
    """The functions that nodes call, each once."""
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
                f"the file defines a function '{function.name}' in the standard domain, which belongs to the operators "
                "of ONNX: give it a domain of its own, at its definition and at its calls"
            )


def _refuse_without_body(model: onnx.ModelProto) -> None:
    bodies = {_id(function) for function in model.functions}
    for node in every_node(model):
        if node.domain == DOMAIN and (node.domain, node.op_type, node.overload) not in bodies:
            raise ModelError(
                f"node '{node.name or next(iter(node.output), '')}' calls {DOMAIN}.{node.op_type} of version "
                f"{_version(model)} of the dialect, whose body is not in the file; this subbyte reads versions 1 to "
                f"{DOMAIN_VERSION}: export the model again"
            )


def _ours(model: onnx.ModelProto) -> dict[Id, onnx.FunctionProto]:
    version = _version(model)
    return {
        _id(function): function
        for function in model.functions
        if function.domain == DOMAIN
        and not function.overload
        and normal_form(function) in map(normal_form, _bodies(function.name, version))
    }


def _version(model: onnx.ModelProto) -> int:
    found = (int(entry.version) for entry in model.opset_import if entry.domain == DOMAIN)
    return next(found, DOMAIN_VERSION)


def _bodies(name: str, version: int) -> tuple[onnx.FunctionProto, ...]:
    ours = find(name)
    return () if ours is None else ours.bodies(version)


def _id(function: onnx.FunctionProto) -> Id:
    return function.domain, function.name, function.overload


def _complete(node: onnx.NodeProto, function: onnx.FunctionProto) -> bool:
    return len(node.input) == len(function.input) and all(node.input) and not node.attribute


def _calls(model: onnx.ModelProto, id_: Id) -> Iterator[onnx.NodeProto]:
    return (node for node in every_node(model) if (node.domain, node.op_type, node.overload) == id_)


def _in_opset_of(model: onnx.ModelProto, function: onnx.FunctionProto) -> onnx.FunctionProto:
    """The function in the model's opset, in which the inliner leaves its operators; refused where that changes one."""
    wanted = _opset(model.opset_import)
    written = _opset(function.opset_import)
    if written == wanted:
        return function
    for node in function.node:
        if node.domain in STANDARD_DOMAINS and _since(node, written) != _since(node, wanted):
            raise ModelError(
                f"function {function.domain}.{function.name} is written in opset {written} and the model in opset "
                f"{wanted}, in which {node.op_type} is another operator: export both in one opset"
            )
    for entry in function.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            entry.version = wanted
    return function


def _opset(imports: Any) -> int:
    return max((int(entry.version) for entry in imports if entry.domain in STANDARD_DOMAINS), default=1)


def _since(node: onnx.NodeProto, opset: int) -> int:
    """The opset that gave the operator the meaning it has in `opset`; 0 where that has no such operator."""
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, "").since_version)
    except onnx.defs.SchemaError:
        return 0


# ---- comparing bodies ----


def normal_form(function: onnx.FunctionProto) -> Body:
    """What a function computes, whatever its values are called and its constants are stored; equal forms compute alike.

    Operators stand with the opset that gave them their meaning; attributes that say what holds anyway are left out.
    """
    opset = _opset(function.opset_import)
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
