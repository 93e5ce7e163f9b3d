"""What no kernel took goes through TVM: ONNX nodes to Relax, legalised and fused, read back as a line of TIR calls.

TVM's importer looks at operator types alone. Ours looks into the table of relax_converters.py first. What TVM's own
converters handle stands in relax_limits.py; expand.py replaces or refuses the rest.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from subbyte.errors import CompileError
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.interpret import node_proto
from subbyte.tvm_kernels.relax_converters import CONVERTERS

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Made:
    """A tensor between TIR calls: a value of the graph by name, or one of the run's own, with shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class TirCall:
    """One call of the straight line: buffers of `function` are `inputs`, then `outputs`."""

    label: str
    function: Any
    inputs: tuple[str | Array, ...]
    outputs: tuple[Made, ...]


class Importer(onnx_frontend.ONNXGraphImporter):  # type: ignore[misc]
    """TVM's importer with our table; operators of other domains are called 'domain::operator' here."""

    def _check_for_unsupported_ops(self, graph: Any) -> None:
        """Done before, by expand.py."""

    def _convert_operator(self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        own = CONVERTERS.get(_key(op_name))
        if own is None:
            return super()._convert_operator(op_name, inputs, attrs, opset)
        return self.bb.normalize(own(self.bb, inputs, attrs))


def _key(op_type: str) -> tuple[str, str]:
    domain, _, op = op_type.rpartition("::")
    return domain, op


# ---- a run of nodes as a small ONNX model ----


def run_model(graph: Graph, nodes: Sequence[Node]) -> tuple[onnx.ModelProto, list[str], list[str], dict[str, str]]:
    """The nodes as a model with plain names v0, v1, ...; the graph's names of its inputs and of its outputs; and the
    plain name of each value of the graph."""
    made = {name for node in nodes for name in node.outputs if name}
    inside = set(nodes)
    names: dict[str, str] = {"": ""}
    inputs: list[str] = []
    constants: list[onnx.TensorProto] = []
    protos: list[onnx.NodeProto] = []
    for node in nodes:
        for name in (*node.inputs, *node.outputs):
            if not name or name in names:
                continue
            names[name] = f"v{len(names)}"
            data = graph.constant_of(name)
            if data is not None:
                # ascontiguousarray would give a scalar an axis, and with it everything that is computed from it
                constants.append(onnx.numpy_helper.from_array(np.asarray(data, order="C"), names[name]))
            elif name not in made:
                inputs.append(name)
        proto = node_proto(node)
        if node.op == "UnpackBits":
            channels = graph.values[node.outputs[0]].memory_shape[-1]
            proto.attribute.append(onnx.helper.make_attribute("channels", channels))
        if node.op in ("Part", "MaxUnpool"):
            proto.attribute.append(onnx.helper.make_attribute("shape", graph.values[node.outputs[0]].memory_shape))
        del proto.input[:], proto.output[:]
        proto.input.extend(names[name] for name in node.inputs)
        proto.output.extend(names[name] for name in node.outputs)
        protos.append(proto)
    outputs = [
        name
        for node in nodes
        for name in node.outputs
        if name and (name in graph.outputs or any(user not in inside for user in graph.users(name)))
    ]

    def info(name: str) -> onnx.ValueInfoProto:
        value = graph.values[name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.memory_dtype))
        return onnx.helper.make_tensor_value_info(names[name], kind, value.memory_shape)

    body = onnx.helper.make_graph(protos, "leftovers", [info(n) for n in inputs], [info(n) for n in outputs], constants)
    opsets = [onnx.helper.make_opsetid("", graph.opset), onnx.helper.make_opsetid("subbyte", 1)]
    return onnx.helper.make_model(body, opset_imports=opsets), inputs, outputs, names


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Operators of other domains called 'domain::operator', as TVM's importer looks at types alone."""
    for node in model.graph.node:
        if node.domain:
            node.op_type, node.domain = f"{node.domain}::{node.op_type}", ""
    return model


# ---- Relax ----


def _passes() -> Any:
    transform = relax.transform
    return tvm.transform.Sequential(
        [
            transform.DecomposeOpsForInference(),
            transform.CanonicalizeBindings(),
            transform.LegalizeOps(),
            transform.AnnotateTIROpPattern(),
            transform.FoldConstant(),
            transform.FuseOps(),
            transform.FuseTIR(),
            transform.DeadCodeElimination(),
            transform.ToNonDataflow(),
            transform.CanonicalizeBindings(),
        ]
    )


def leftovers(graph: Graph, nodes: Sequence[Node]) -> list[TirCall]:
    """TIR calls that compute a run of ONNX nodes.

    Raises CompileError naming a node that TVM cannot import, or whose result has another shape or dtype in TVM.
    """
    model, inputs, outputs, names = run_model(graph, nodes)
    model = _named(model)
    importer = Importer({}, "float32", sanitize=False)
    listed = ", ".join(f"'{node.name}' ({node.op})" for node in nodes[:6])
    talk = io.StringIO()  # the importer prints on errors
    try:
        with contextlib.redirect_stdout(talk), tvm.target.Target("llvm"):
            imported = importer.from_onnx(model.graph, graph.opset)
            for node in nodes:
                _compare_types(graph, node, {name: importer._nodes.get(names[name]) for name in node.outputs})
            module = _passes()(imported)
    except CompileError:
        raise
    except Exception as error:  # TVM raises many kinds
        text = " ".join(str(error).split())[-300:]
        raise CompileError(f"TVM cannot import {listed}: {text}. Replace the operator in the model") from error
    return _line(module, inputs, outputs, nodes)


def _compare_types(graph: Graph, node: Node, results: dict[str, Any]) -> None:
    """Raise CompileError unless TVM's results have the shapes and dtypes of the graph's values."""
    for name, result in results.items():
        if not name or result is None:
            continue
        value = graph.values[name]
        kind = result.ty
        got = f"a {type(kind).__name__}"
        if isinstance(kind, relax.TensorType) and kind.shape is not None:
            got = f"{kind.dtype} {[int(d) if isinstance(d, tvm.tirx.IntImm) else str(d) for d in kind.shape]}"
        wanted = f"{value.memory_dtype} {list(value.memory_shape)}"
        if got != wanted:
            raise CompileError(
                f"'{node.name}' ({node.op}): TVM makes '{name}' {got}, ONNX makes it {wanted}: its numbers would be "
                "wrong. Replace the operator in the model"
            )


def _line(module: Any, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[Node]) -> list[TirCall]:
    """The straight line of call_tir in `main`."""
    main = module["main"]
    known: dict[Any, Any] = {}  # Var -> name, Array, or list of those
    for var, name in zip(main.params, inputs, strict=True):
        known[var] = name
    calls: list[TirCall] = []
    prefix = nodes[0].outputs[0]
    for block in main.body.blocks:
        for binding in block.bindings:
            known[binding.var] = _bound(module, binding, known, calls, f"{prefix}/{len(calls)}", nodes)
    result = known.get(main.body.body)
    if result is None:
        result = [_resolve(field, known) for field in main.body.body.fields]
    results = result if isinstance(result, list) else [result]
    return _rename(calls, dict(zip(outputs, results, strict=True)), nodes)


def _resolve(expr: Any, known: dict[Any, Any]) -> Any:
    if isinstance(expr, tvm.ir.expr.GenericConst):
        return expr.value.numpy()
    if isinstance(expr, relax.Tuple):
        return [_resolve(field, known) for field in expr.fields]
    if isinstance(expr, relax.TupleGetItem):
        return _resolve(expr.tuple_value, known)[expr.index]
    return known[expr]


def _bound(
    module: Any, binding: Any, known: dict[Any, Any], calls: list[TirCall], name: str, nodes: Sequence[Node]
) -> Any:
    value = binding.value
    if not isinstance(value, relax.Call):
        return _resolve(value, known)
    if value.op != tvm.ir.Op.get("relax.call_tir"):
        listed = ", ".join(f"'{node.name}' ({node.op})" for node in nodes[:6])
        raise CompileError(f"{listed} needs TVM's own runtime ({value.op}); replace the operator in the model")
    kind = value.ty_args[0]
    fields = list(kind.fields) if isinstance(kind, relax.TupleType) else [kind]
    made = tuple(
        Made(f"{name}.{index}", tuple(int(d) for d in field.shape), str(field.dtype))
        for index, field in enumerate(fields)
    )
    arguments = tuple(_resolve(argument, known) for argument in value.args[1])
    label = value.args[0].name_hint
    calls.append(TirCall(label, module[value.args[0]], arguments, made))
    names = [tensor.name for tensor in made]
    return names if isinstance(kind, relax.TupleType) else names[0]


def _rename(calls: list[TirCall], results: dict[str, Any], nodes: Sequence[Node]) -> list[TirCall]:
    """Let the results be called as in the graph; a result that is an input, a constant or taken twice is copied."""
    renamed: dict[str, str] = {}
    copies: list[tuple[str, Any]] = []
    made = {tensor.name for call in calls for tensor in call.outputs}
    for target, source in results.items():
        if isinstance(source, str) and source in made and source not in renamed:
            renamed[source] = target
        else:
            copies.append((target, source))
    line = []
    for call in calls:
        inputs = tuple(renamed.get(a, a) if isinstance(a, str) else a for a in call.inputs)
        outputs = tuple(Made(renamed.get(t.name, t.name), t.shape, t.dtype) for t in call.outputs)
        line.append(TirCall(call.label, call.function, inputs, outputs))
    for target, source in copies:
        source = renamed.get(source, source) if isinstance(source, str) else source
        line.append(TirCall("copy", None, (source,), (Made(target, (), ""),)))
    return line
