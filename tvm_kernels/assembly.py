"""From the lowered graph to a plan: a kernel for each operator, a place for each tensor and each constant."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from subbyte.dialect.macs import MACS
from subbyte.errors import CompileError
from subbyte.formats.energy import ELEMENTWISE, FLOAT
from subbyte.runtime.manifest import STATE_WORD
from subbyte.tvm_kernels import memory
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.error_context import working_on
from subbyte.tvm_kernels.graph import Array, Graph, Node, Value, shapes_of
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, Choice, Constant, Input, Output, Workspace, choose
from subbyte.tvm_kernels.memory import aligned
from subbyte.tvm_kernels.plan import Argument, KernelCall, Plan, StateTensor, Tensor

if TYPE_CHECKING:
    from subbyte.tvm_kernels.relax_import import Lowering


@dataclass
class ConstantPool:
    """weights.bin as it grows: each constant once, aligned to 64 bytes."""

    parts: list[bytes] = field(default_factory=list)
    nbytes: int = 0
    known: dict[tuple[bytes, int], int] = field(default_factory=dict)

    def add(self, values: Array) -> int:
        """Offset of these bytes; equal bytes share one place."""
        raw = np.ascontiguousarray(values).tobytes()
        key = (hashlib.sha256(raw).digest(), len(raw))
        if key not in self.known:
            self.known[key] = self.nbytes
            padding = aligned(len(raw)) - len(raw)
            self.parts += [raw, bytes(padding)]
            self.nbytes += len(raw) + padding
        return self.known[key]


@dataclass(eq=False)
class OpenCall:
    """A call whose run-time tensors have no place yet: a str is a value, an Argument has its place."""

    call: KernelCall  # without arguments and outputs
    arguments: list[str | Argument]
    writes: list[str]
    workspace: int = 0
    sizes: dict[str, int] = field(default_factory=dict)  # of tensors that are no values of the graph


def assemble(graph: Graph, features: frozenset[str]) -> Plan:
    """The plan of a graph whose layout is assigned; raises CompileError for an operator that nothing can run."""
    weights = ConstantPool()
    _own_buffers_for_outputs(graph)
    calls = _calls(graph, features, weights)
    aliases = _aliases(graph)
    states = _states(graph, weights)
    places, arena = _places(graph, calls, aliases, states)
    read = {_root(a, aliases) for call in calls for a in call.arguments if isinstance(a, str)}
    for name, value in graph.values.items():
        if value.data is not None and name in read:
            places[name] = Argument("weights", weights.add(value.data))
    shown = _shown(graph, aliases)
    inputs, outputs = _called_with(graph)
    return Plan(
        name=graph.name,
        inputs=tuple(_tensor(graph.values[name], Argument("input", i)) for i, name in enumerate(inputs)),
        outputs=tuple(_tensor(graph.values[name], Argument("output", i)) for i, name in enumerate(outputs)),
        calls=tuple(_placed(graph, call, places, aliases, shown) for call in calls),
        weights=b"".join(weights.parts),
        arena_bytes=arena.nbytes,
        workspace_bytes=max((call.workspace for call in calls), default=0),
        states=tuple(replace(state, next=_place(state.output, places, aliases)) for state in states),
        state_bytes=sum(aligned(state.tensor.nbytes) for state in states) + (STATE_WORD if states else 0),
        source={"metadata": dict(graph.metadata), "arena_lower_bound": arena.lower_bound},
        notes=tuple(graph.notes),
        explanation=graph.explanation,
    )


# ---- kernels ----

# What is handed to TVM at once: its passes take more than in proportion to nodes, and it may make one call of all of
# them, of which the C core takes 32 arguments.
MOST_NODES, MOST_READ = 64, 20


@dataclass(eq=False)
class KernelCache:
    """The kernels of a CPU as they are built: elementwise ones that do the same, once."""

    features: frozenset[str]
    known: dict[Any, tuple[Choice, Built]] = field(default_factory=dict)

    def of(self, node: Node, operator: ops.Operator) -> tuple[Choice, Built]:
        """The kernel of a node's operator, chosen and built."""
        key = _content(replace(operator, name="")) if isinstance(operator, ops.Elementwise) else node
        if key not in self.known:
            working_on("choosing a kernel", node)
            choice = choose(operator, self.features)
            working_on("building a kernel", node, choice.kernel.name)
            self.known[key] = choice, choice.kernel.build(operator)
        return self.known[key]


def _content(value: Any) -> Any:
    """A key that is equal for equal content: of arrays by their bytes, of dataclasses by their fields."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if is_dataclass(value):
        return type(value), *(_content(getattr(value, known.name)) for known in fields(value))
    return tuple(map(_content, value)) if isinstance(value, tuple) else value


def _calls(graph: Graph, features: frozenset[str], weights: ConstantPool) -> list[OpenCall]:
    """Calls of kernels and of runs of remaining ONNX nodes, in order."""
    from subbyte.tvm_kernels.relax_import import Lowering

    calls: list[OpenCall] = []
    run: list[Node] = []
    lowering, kernels = Lowering(graph), KernelCache(features)

    def finish_run() -> None:
        calls.extend(_relax_calls(lowering, run, weights) if run else ())
        run.clear()

    for node in graph.order():
        if node.operator is not None:
            finish_run()
            if graph.explanation is not None:
                graph.explanation.rows_for(node, node.operator, features)
            calls.append(_kernel_call(graph, node, kernels, weights))
        elif node.op in ("View", "Part") and not node.attributes.get("copied"):
            # TVM does not see that a view is the same bytes: what it is a view of must be made before.
            if graph.producer(node.inputs[0]) in run:
                finish_run()
        else:
            made = {name for other in run for name in other.outputs}
            read = {name for other in (*run, node) for name in other.inputs if name not in made}
            if len(run) == MOST_NODES or len(read) > MOST_READ:
                finish_run()
            run.append(node)
            if graph.explanation is not None:
                graph.explanation.tvm_computes(graph, node)
    finish_run()
    return calls


def _kernel_call(graph: Graph, node: Node, kernels: KernelCache, weights: ConstantPool) -> OpenCall:
    operator = node.operator
    assert operator is not None
    choice, built = kernels.of(node, operator)
    own = dict(zip(OWN_INPUTS, node.inputs[: operator.inputs], strict=False))
    arguments: list[str | Argument] = []
    scratch = constants = 0
    for parameter in built.parameters:
        if isinstance(parameter, Input):
            arguments.append(own.get(parameter.tensor, parameter.tensor))
        elif isinstance(parameter, Output):
            arguments.append(node.outputs[parameter.index])
        elif isinstance(parameter, Constant):
            arguments.append(Argument("weights", weights.add(parameter.values)))
            constants += parameter.values.nbytes
        else:
            assert isinstance(parameter, Workspace)
            arguments.append(Argument("workspace", scratch))
            scratch += aligned(parameter.nbytes)
    call = _open(
        *(graph, node, arguments, [name for name in node.outputs if name], constants),
        kernel=choice.kernel.name,
        function=built.function,
        macs=operator.macs,
        fallback=node.fallback,
        passed_over=choice.passed_over,
        needs=choice.kernel.needs,
    )
    call.workspace = scratch
    return call


def _relax_calls(lowering: Lowering, run: Sequence[Node], weights: ConstantPool) -> list[OpenCall]:
    from subbyte.tvm_kernels.schedules import copy_function

    graph = lowering.graph
    makers = {name: node for node in run for name in node.outputs}
    working_on("compiling nodes by TVM", run[0])
    lowered = lowering.calls(run)
    made = [[tensor.name for tensor in call.outputs] for call in lowered]
    inside: list[list[Node]] = [[] for _ in lowered]
    for node in run:
        inside[_call_of(graph, node, run, made)].append(node)
    calls = []
    for call, names, nodes in zip(lowered, made, inside, strict=True):
        node = next((makers[name] for name in names if name in makers), run[0])
        function = call.function
        if function is None:
            value = graph.values[names[0]]
            function = copy_function(value.memory_shape, value.memory_dtype)
        read = [a if isinstance(a, str) else Argument("weights", weights.add(a)) for a in call.inputs]
        # A call is named after its last node: a reason of a node fused into it has that node's name.
        reasons = [one.fallback if one is node else f"'{one.name}': {one.fallback}" for one in nodes if one.fallback]
        constants = sum(_read_bytes(graph, run, a) for a in call.inputs if not isinstance(a, str))
        opened = _open(
            *(graph, node, [*read, *names], names, constants),
            kernel=f"relax:{call.label}",
            function=function,
            macs=sum(_macs(graph, one) for one in nodes),
            fallback="; ".join(reasons) or None,
            passed_over=tuple(node.declined.items()),
        )
        opened.sizes = {t.name: prod(t.shape) * np.dtype(t.dtype).itemsize for t in call.outputs if t.dtype}
        calls.append(opened)
    return calls


def _macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of a node without a kernel; 0 for nodes other than products."""
    if node.domain or node.op not in MACS:
        return 0
    return MACS[node.op](shapes_of(graph, node))


def _call_of(graph: Graph, node: Node, run: Sequence[Node], made: Sequence[Sequence[str]]) -> int:
    """The call that makes what a node makes; where the node is fused, that of what reads it."""
    inside, seen = set(run), [node]
    for one in seen:
        found = next((index for index, names in enumerate(made) if set(names) & set(one.outputs)), None)
        if found is not None:
            return found
        seen += [user for name in one.outputs for user in graph.users(name) if user in inside and user not in seen]
    return len(made) - 1


def _read_bytes(graph: Graph, run: Sequence[Node], constant: Array) -> int:
    """How many bytes of a constant one run reads: of a table that is indexed, as many as its rows have."""
    rows = 0
    for node in run:
        table = graph.constant_of(node.inputs[0]) if node.op.startswith("Gather") and not node.domain else None
        if table is not None and (table.shape, table.dtype) == (constant.shape, constant.dtype):
            rows += graph.values[node.outputs[0]].nbytes
    return min(rows, constant.nbytes) if rows else constant.nbytes


# ---- places ----


@dataclass(frozen=True)
class Alias:
    """A view: the bytes of `root` from `offset` on."""

    root: str
    offset: int = 0


Aliases = dict[str, Alias]


def _aliases(graph: Graph) -> Aliases:
    """The root of each View and Part. A part of a value in the caller's buffers has to be copied instead."""
    found: Aliases = {}
    for node in graph.order():
        if node.op not in ("View", "Part") or node.operator is not None or node.attributes.get("copied"):
            continue
        source = found.get(node.inputs[0], Alias(node.inputs[0]))
        start = node.attributes.get("start", 0) * np.dtype(graph.values[node.inputs[0]].memory_dtype).itemsize
        found[node.outputs[0]] = Alias(source.root, source.offset + start)
    return found


def _called_with(graph: Graph) -> tuple[list[str], list[str]]:
    """The inputs and outputs of a run: those of the graph that are no state."""
    before, after = ({getattr(state, side) for state in graph.states} for side in ("input", "output"))
    return [n for n in graph.inputs if n not in before], [n for n in graph.outputs if n not in after]


def _states(graph: Graph, weights: ConstantPool) -> list[StateTensor]:
    """The states one after the other; where their next values will be is not known yet."""
    found, offset = [], 0
    for state, initial in graph.states.items():
        tensor = _tensor(graph.values[state.input], Argument("state", offset))
        offset += aligned(tensor.nbytes)
        at = weights.add(initial) if np.ascontiguousarray(initial).view(np.uint8).any() else None
        found.append(StateTensor(tensor, state.output, Argument("arena", 0), at))
    return found


def _own_buffers_for_outputs(graph: Graph) -> None:
    """An output that shares its bytes with an input, a constant or another output is copied; so is a part of one.

    The next value of a state is an output, too: kernels read the value before it until the run ends. A part of that
    value is in place.
    """
    taken: set[str] = set()
    aliases, callers = _aliases(graph), _called_with(graph)[0]
    for name in graph.outputs:
        alias = aliases.get(name, Alias(name))
        maker = graph.producer(name)
        if maker is None or alias.root in taken or graph.producer(alias.root) is None or alias.offset:
            _copy_output(graph, name, maker)
        else:
            taken.add(alias.root)
    for node in graph.order():
        root = aliases.get(node.inputs[0], Alias(node.inputs[0])).root if node.op == "Part" else ""
        if node.op == "Part" and (root in taken or root in callers):
            node.attributes["copied"] = True


def _copy_output(graph: Graph, name: str, maker: Node | None) -> None:
    value = graph.values[name]
    inner = name
    if maker is None:
        raise CompileError(f"the output '{name}' is an input or a constant of the model; remove it from the outputs")
    inner = graph.fresh(name)
    graph.add_value(inner, value.dtype, value.shape, storage=value.storage, layout=value.layout)
    graph.set_outputs(maker, [inner if output == name else output for output in maker.outputs])
    graph.replace_uses(name, inner)
    graph.add(Node("Identity", [inner], [name], {}, name))


def _root(name: str, aliases: Aliases) -> str:
    return aliases[name].root if name in aliases else name


def _place(name: str, places: dict[str, Argument], aliases: Aliases) -> Argument:
    alias = aliases.get(name, Alias(name))
    root = places[alias.root]
    return Argument(root.space, root.offset + alias.offset) if alias.offset else root


def _places(
    graph: Graph, calls: Sequence[OpenCall], aliases: Aliases, states: Sequence[StateTensor]
) -> tuple[dict[str, Argument], memory.Arena]:
    """The location of each root value."""
    inputs, outputs = _called_with(graph)
    places: dict[str, Argument] = {name: Argument("input", i) for i, name in enumerate(inputs)}
    places |= {state.tensor.value: state.tensor.place for state in states}
    for index, name in enumerate(outputs):
        places[_root(name, aliases)] = Argument("output", index)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for index, call in enumerate(calls):
        for name in (_root(a, aliases) for a in call.arguments if isinstance(a, str)):
            if name in places or (name in graph.values and graph.values[name].data is not None):
                continue
            first.setdefault(name, index)
            last[name] = index
            sizes[name] = call.sizes.get(name) or sizes.get(name) or graph.values[name].nbytes
    last |= {_root(state.output, aliases): len(calls) for state in states}  # read when the run has ended
    arena = memory.plan([memory.Buffer(name, sizes[name], first[name], last[name]) for name in first])
    places.update({name: Argument("arena", offset) for name, offset in arena.offsets.items()})
    return places, arena


# ---- calls and tensors of the plan ----


def _shown(graph: Graph, aliases: Aliases) -> dict[str, str]:
    """For values that lowering made: a value of the file that is a view of the whole of it, in ONNX's order."""
    reordered = {node.outputs[0] for node in graph.order() if node.attributes.get("reordered")}
    shown: dict[str, str] = {}
    for name, alias in aliases.items():
        root = graph.values[alias.root]
        whole = not alias.offset and graph.values[name].nbytes == root.nbytes
        if whole and name in graph.onnx_names and name not in reordered and alias.root not in graph.onnx_names:
            shown.setdefault(alias.root, name)
    return shown


def _tensor(value: Value, place: Argument) -> Tensor:
    storage = value.storage
    return Tensor(
        name=value.holds or value.name,
        dtype=value.memory_dtype,
        shape=value.memory_shape,
        storage=storage.kind,
        zero_point=storage.zero_point,
        channels=storage.channels,
        layout="NHWC" if value.layout == "NHWC" else "as-is",
        place=place,
        nbytes=value.nbytes,
        value=value.name,
    )


def _storage_name(value: Value) -> str:
    return value.storage.format if value.coded else value.dtype


def _open(
    graph: Graph, node: Node, arguments: list[str | Argument], writes: list[str], constants: int, **own: Any
) -> OpenCall:
    """The call of a node that reads so many bytes of weights.bin; `own`: further fields of the KernelCall."""
    names = [a for a in dict.fromkeys(arguments) if isinstance(a, str) and a not in writes]
    read, made = ([graph.values[name] for name in some if name in graph.values] for some in (names, writes))
    operator = node.operator
    known = ops.Facts(per_mac=FLOAT) if operator is None else operator.facts()
    if operator is not None and operator.macs and known.per_mac is None:
        raise CompileError(
            f"operator '{node.name}', {operator.kind}: its facts lack 'per_mac', the operations of one of its "
            f"{operator.macs} multiply-accumulates; state them in facts of {type(operator).__module__}"
        )
    activation = known.activation or (_storage_name(read[0]) if read else "float32")
    call = KernelCall(
        name=node.name,
        kind="relax" if operator is None else operator.kind,
        activation=activation,
        weights=known.weights,
        bits_per_weight=known.bits_per_weight,
        per_mac=dict((known.per_mac or FLOAT).operations),
        weight_bytes=constants if known.weight_bytes is None else known.weight_bytes,
        input_bytes=sum(value.nbytes for value in read),
        output_bytes=sum(value.nbytes for value in made),
        per_element=ELEMENTWISE if operator is None else operator.per_element,
        arguments=(),
        outputs=(),
        **own,
    )
    return OpenCall(call, arguments, writes)


def _placed(
    graph: Graph, opened: OpenCall, places: dict[str, Argument], aliases: Aliases, shown: dict[str, str]
) -> KernelCall:
    results = [name for name in opened.writes if name in graph.values]
    return replace(
        opened.call,
        arguments=tuple(_place(a, places, aliases) if isinstance(a, str) else a for a in opened.arguments),
        outputs=tuple(_tensor(graph.values[shown.get(n, n)], _place(n, places, aliases)) for n in results),
    )
