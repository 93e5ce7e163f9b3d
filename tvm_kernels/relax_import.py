"""Compiles nodes without a kernel by TVM: ONNX nodes to Relax, legalised and fused, read back as a list of TIR calls.

TVM's importer converts by operator type alone. Ours uses the table of relax_converters/ first, and compares the shape
and type of every result with the graph's. relax_limits.py states what TVM's own converters handle; expand.py replaces
or refuses the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from subbyte.tvm_kernels.error_context import working_on
from subbyte.tvm_kernels.float_semantics import as_in_onnx
from subbyte.tvm_kernels.graph import Graph, Node, Value
from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.interpret import node_proto
from subbyte.tvm_kernels.relax_converters import CONVERTERS
from subbyte.tvm_kernels.schedules import scheduled

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Made:
    """A tensor between TIR calls: a value of the graph by name, or one of the run's own, with shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class TirCall:
    """One call of the sequence: buffers of `function` are `inputs`, then `outputs`."""

    label: str
    function: Any
    inputs: tuple[str | Array, ...]
    outputs: tuple[Made, ...]


# ---- a run of nodes as a small ONNX model ----


@dataclass(frozen=True, eq=False)
class Run:
    """Nodes between two kernels as an ONNX graph of plain names v0, v1, ..., node by node."""

    nodes: Sequence[Node]
    proto: onnx.GraphProto
    names: dict[str, str]  # of the graph's values there
    inputs: list[str]  # the graph's names
    outputs: list[str]


def run_of(graph: Graph, nodes: Sequence[Node]) -> Run:
    """The nodes as a graph of their own."""
    made = {name for node in nodes for name in node.outputs if name}
    inside = set(nodes)
    constant = {name for name in made if graph.constant_of(name) is not None}  # those without elements
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
        kinds = [graph.values[name].dtype for name in (*node.inputs, *node.outputs)] if node.op == "Cast" else []
        if "float16" in kinds:
            proto.op_type = f"{INTERNAL}::ToFloat16" if kinds[1] == "float16" else f"{INTERNAL}::FromFloat16"
            del proto.attribute[:]
        elif node.domain:  # TVM looks at operator types alone
            proto.op_type, proto.domain = f"{node.domain}::{node.op}", ""
        del proto.input[:], proto.output[:]
        proto.input.extend(names[name] for name in node.inputs)
        proto.output.extend("" if name in constant else names[name] for name in node.outputs)
        protos.append(proto)
    outputs = [
        name
        for node in nodes
        for name in node.outputs
        if name
        and name not in constant
        and (name in graph.outputs or any(user not in inside for user in graph.users(name)))
    ]

    def info(name: str) -> onnx.ValueInfoProto:
        value = graph.values[name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(_in_tvm(value)))
        return onnx.helper.make_tensor_value_info(names[name], kind, value.memory_shape)

    proto = onnx.helper.make_graph(protos, "run", [info(n) for n in inputs], [info(n) for n in outputs], constants)
    return Run(nodes, proto, names, inputs, outputs)


def _in_tvm(value: Value) -> str:
    """The type of a value's elements in TVM: float16 is its bits."""
    return "uint16" if value.memory_dtype == "float16" else value.memory_dtype


# ---- Relax ----


class Importer(onnx_frontend.ONNXGraphImporter):  # type: ignore[misc]
    """TVM's importer with our table, node by node; operators of other domains are called 'domain::operator' here."""

    def __init__(self, graph: Graph, run: Run) -> None:
        super().__init__({}, "float32", sanitize=False)
        self._graph, self._run = graph, run

    def _check_for_unsupported_ops(self, graph: Any) -> None:
        """Done before, by expand.py."""

    def _construct_nodes(self, graph: Any) -> None:
        for node, proto in zip(self._run.nodes, graph.node, strict=True):
            try:
                super()._construct_nodes(onnx.GraphProto(node=[proto]))
            except Exception as error:  # TVM raises many kinds
                text = " ".join(str(error).split())[-300:]
                raise CompileError(
                    f"TVM cannot import '{node.name}' ({node.op}): {text or type(error).__name__}. Replace the "
                    "operator in the model"
                ) from error
            for name, plain in zip(node.outputs, proto.output, strict=True):
                if plain:
                    self._compare(node, self._graph.values[name], self._nodes[plain].ty)

    def _compare(self, node: Node, value: Value, kind: Any) -> None:
        """Raise CompileError unless TVM's result has the shape and dtype of the graph's value."""
        got = f"a {type(kind).__name__}"
        if isinstance(kind, relax.TensorType) and kind.shape is not None:
            got = f"{kind.dtype} {[int(d) if isinstance(d, tvm.tirx.IntImm) else str(d) for d in kind.shape]}"
        wanted = f"{_in_tvm(value)} {list(value.memory_shape)}"
        if got != wanted:
            raise CompileError(
                f"'{node.name}' ({node.op}): TVM makes '{value.name}' {got}, ONNX makes it {wanted}: its numbers would "
                "be wrong. Replace the operator in the model"
            )

    def _convert_operator(self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        domain, _, op = op_name.rpartition("::")
        own = CONVERTERS.get((domain, op))
        made = own and own(self.bb, inputs, attrs)
        return super()._convert_operator(op_name, inputs, attrs, opset) if made is None else self.bb.normalize(made)


# FuseTIR repeats a value at each use: in a chain of operators that read a value twice the size doubles each time.
_FUSION = {"relax.FuseOps.max_depth": 8}  # operators in a function


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


class Lowering:
    """The runs of a graph through TVM; equal runs, whatever their values are called, go through it once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.lowered: dict[bytes, Lowered] = {}

    def calls(self, nodes: Sequence[Node]) -> list[TirCall]:
        """TIR calls that compute a run of ONNX nodes, with loops fit for a CPU.

        Raises CompileError naming a node that TVM cannot import, or whose result has another shape or dtype in TVM.
        """
        run = run_of(self.graph, nodes)
        key = _content(run)
        if key not in self.lowered:
            self.lowered[key] = Lowered(_module(self.graph, run))
        return _calls(self.lowered[key], run.inputs, run.outputs, nodes)


class Lowered:
    """A module of Relax whose `main` is a sequence of call_tir, and the functions that it calls."""

    def __init__(self, module: Any) -> None:
        self.main = module["main"]
        self._module = module
        self._functions: dict[str, Any] = {}

    def function(self, called: Any, node: Node) -> Any:
        """The scheduled function of a global variable."""
        name = called.name_hint
        if name not in self._functions:
            working_on("scheduling what TVM made", node, name)
            self._functions[name] = scheduled(as_in_onnx(self._module[called]))
        return self._functions[name]


def _content(run: Run) -> bytes:
    """What a run computes, without the names of its nodes."""
    plain = onnx.GraphProto()
    plain.CopyFrom(run.proto)
    for node in plain.node:
        node.ClearField("name")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).digest()


def _module(graph: Graph, run: Run) -> Any:
    talk = io.StringIO()  # the importer prints on errors
    try:
        with contextlib.redirect_stdout(talk), tvm.target.Target("llvm"), tvm.transform.PassContext(config=_FUSION):
            return _passes()(Importer(graph, run).from_onnx(run.proto, graph.opset))
    except CompileError:
        raise
    except Exception as error:  # TVM raises many kinds
        listed = ", ".join(f"'{node.name}' ({node.op})" for node in run.nodes[:6])
        text = " ".join(str(error).split())[-300:]
        raise CompileError(f"TVM cannot lower {listed}: {text}. Replace the operator in the model") from error


def _calls(lowered: Lowered, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[Node]) -> list[TirCall]:
    """The sequence of call_tir in `main`."""
    main = lowered.main
    known: dict[Any, Any] = {}  # Var -> name, Array, or list of those
    for var, name in zip(main.params, inputs, strict=True):
        known[var] = name
    calls: list[TirCall] = []
    prefix = nodes[0].outputs[0]
    for block in main.body.blocks:
        for binding in block.bindings:
            known[binding.var] = _bound(lowered, binding, known, calls, f"{prefix}/{len(calls)}", nodes)
    result = _resolve(main.body.body, known)
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
    lowered: Lowered, binding: Any, known: dict[Any, Any], calls: list[TirCall], name: str, nodes: Sequence[Node]
) -> Any:
    value = binding.value
    if not isinstance(value, relax.Call):
        return _resolve(value, known)
    if value.op != tvm.ir.Op.get("relax.call_tir"):
        listed = ", ".join(f"'{node.name}' ({node.op})" for node in nodes[:6])
        raise CompileError(f"{listed} needs TVM's own runtime ({value.op.name}); replace the operator in the model")
    kind = value.ty_args[0]
    fields = list(kind.fields) if isinstance(kind, relax.TupleType) else [kind]
    made = tuple(
        Made(f"{name}.{index}", tuple(int(d) for d in field.shape), str(field.dtype))
        for index, field in enumerate(fields)
    )
    arguments = tuple(_resolve(argument, known) for argument in value.args[1])
    label = value.args[0].name_hint
    calls.append(TirCall(label, lowered.function(value.args[0], nodes[0]), arguments, made))
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
    results_named = []
    for call in calls:
        inputs = tuple(renamed.get(a, a) if isinstance(a, str) else a for a in call.inputs)
        outputs = tuple(Made(renamed.get(t.name, t.name), t.shape, t.dtype) for t in call.outputs)
        results_named.append(TirCall(call.label, call.function, inputs, outputs))
    for target, source in copies:
        source = renamed.get(source, source) if isinstance(source, str) else source
        results_named.append(TirCall("copy", None, (source,), (Made(target, (), ""),)))
    return results_named
