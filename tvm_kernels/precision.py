"""Parts of a graph in float64 or float16, computed in float32 where the results are those of the file.

A part is a connected set of nodes with values of that type; Casts, inputs and outputs of the graph are its boundary. It
is computed in float32 if every operator is in ARITHMETIC. To add an operator, add its name.

float64 stays, without kernels, where float32 would give different results: where an operator is discontinuous or
returns integers or bool, where a sum has more than LONGEST_SUM terms, where a constant is out of the range of float32,
and where integers of 32 bits or more are converted. A part with data movement only stays, too.

No kernel computes in float16: float32 represents every float16. Values are rounded to float16 at the boundary, and
after every operator where that gives exactly the values of the file: in a part without sums and functions such as Exp,
and in one with a discontinuous operator. At run time only Casts between float32 and float16 remain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from subbyte.dialect import exactness
from subbyte.dialect.graph import DATA_MOVEMENT as ONNX_DATA_MOVEMENT
from subbyte.errors import CompileError
from subbyte.tvm_kernels.graph import Array, Graph, Node
from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.read_graph import type_of

FLOAT, FLOAT16, DOUBLE = 1, 10, 11  # ONNX element types
ELEMENTS = {"float64": DOUBLE, "float16": FLOAT16}
LONGEST_SUM = 1 << 16  # terms: float32 sums of so many, one after the other, keep four digits
LARGEST_CONSTANT = 2.0**24  # from there on float32 does not represent every integer
LARGEST_ADDEND = 2.0**10  # beside it float32 keeps four digits of numbers around 1
SMALLEST_CONSTANT = float(np.finfo(np.float32).tiny)

_OTHER_DATA_MOVEMENT = """
    Cast CenterCropPad Dropout MaxUnpool ReverseSequence ScatterElements ScatterND Trilu View Where
"""
DATA_MOVEMENT = ONNX_DATA_MOVEMENT | frozenset(_OTHER_DATA_MOVEMENT.split())
CHOICES = exactness.CHOICES - {"Where"}
# Operators whose float32 result, rounded to float16, is that of float16.
ROUNDED_ONCE = CHOICES | {"Add", "Div", "LeakyRelu", "Mul", "PRelu", "Reciprocal", "Sqrt", "Sub"}
_OTHERS = """
    Acos Acosh AffineGrid Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Celu Col2Im Conv ConvTranspose
    Cos Cosh DeformConv DequantizeLinear Einsum Elu Erf Exp GRU Gelu Gemm GlobalAveragePool GlobalLpPool GridSample
    GroupNormalization HardSigmoid HardSwish InstanceNormalization LRN LSTM LayerNormalization Log LogSoftmax
    LpNormalization LpPool MatMul MatMulNBits Mean MeanVarianceNormalization Mish NegativeLogLikelihoodLoss Pow
    QuantizeLinear RMSNormalization RNN ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum
    ReduceSumSquare Resize RotaryEmbedding Selu Sigmoid Sin Sinh Softmax SoftmaxCrossEntropyLoss Softplus Softsign Sum
    Swish Tan Tanh
"""
ARITHMETIC = DATA_MOVEMENT | ROUNDED_ONCE | frozenset(_OTHERS.split())
FOREIGN = {("com.microsoft", "MatMulNBits"), ("com.microsoft", "Gelu"), (INTERNAL, "View")}
# Discontinuous, in addition to operators that return integers or bool: the last digit of an input may decide.
DISCONTINUOUS = frozenset({"Ceil", "Floor", "Hardmax", "Mod", "Round", "Shrink", "Sign", "ThresholdedRelu"})
STATES_A_DTYPE = exactness.STATES_OUTPUT_DTYPE - {"value"} | {"precision", "softmax_precision", "stash_type"}
WIDE_INTEGERS = ("int32", "int64", "uint32", "uint64")


@dataclass(eq=False)
class Part:
    """Nodes connected by values of a type, in the graph's order; the Casts into the part, and out of it."""

    dtype: str
    nodes: list[Node] = field(default_factory=list)
    entries: list[Node] = field(default_factory=list)
    exits: list[Node] = field(default_factory=list)

    @property
    def members(self) -> list[Node]:
        return [*self.entries, *self.nodes, *self.exits]

    @property
    def operators(self) -> list[Node]:
        """The nodes that compute."""
        return [node for node in self.nodes if node.op not in DATA_MOVEMENT]

    def take(self, other: Part) -> None:
        self.nodes += other.nodes
        self.entries += other.entries
        self.exits += other.exits


def to_float32(graph: Graph) -> None:
    """Compute parts in float32, with a note for each.

    Raises CompileError for an operator in float16 whose result in float32 is not known to be the same.
    """
    for node in graph.order():
        if node.op == "CastLike":
            to = type_of(graph.values[node.outputs[0]]).tensor_type.elem_type
            graph.replace_node(node, Node("Cast", node.inputs[:1], node.outputs, {"to": to}, node.name))
    for part in parts(graph, "float64"):
        if part.operators and not why_it_stays(graph, part):
            graph.notes.append(_note(part, "computed in float32"))
            _widen(graph, part)
    for part in parts(graph, "float16"):
        if part.nodes or not all(_is_plain(graph, cast) for cast in part.members):
            _check_float16(graph, part)
            _round(graph, part, _widen(graph, part))


def what_stays(graph: Graph) -> list[str]:
    """A line for the report on every part that is computed in float64, without kernels."""
    left = [(part, why_it_stays(graph, part)) for part in parts(graph, "float64") if part.operators]
    return [_note(part, f"computed in float64, without kernels, as {why}") for part, why in left]


def _note(part: Part, how: str) -> str:
    count, first = len(part.operators), part.operators[0]
    return f"{count} {part.dtype} operator{'s' * (count != 1)} from '{first.name}' ({first.op}) on: {how}"


# ---- finding parts ----


def parts(graph: Graph, dtype: str) -> list[Part]:
    """The parts of a graph in that type, in its order; a constant that two of them read joins none."""
    at: dict[str, Part] = {}
    every: list[Part] = []
    for node in (node for node in graph.order() if node.operator is None):
        read, made = ([name for name in names if _is(graph, name, dtype)] for names in (node.inputs, node.outputs))
        if not read and not made:
            continue
        shared = _run_time(graph, (*read, *made))
        joined = list(dict.fromkeys(at[name] for name in shared if name in at)) or [Part(dtype)]
        part = joined[0]
        for other in joined[1:]:
            part.take(other)
            at.update({name: part for name, owner in at.items() if owner is other})
        every = [one for one in every if one not in joined] + [part]
        kind = part.nodes if node.op != "Cast" or (read and made) else part.entries if made else part.exits
        kind.append(node)
        at.update(dict.fromkeys(shared, part))
    place = {node: index for index, node in enumerate(graph.order())}
    for part in every:
        part.nodes.sort(key=place.__getitem__)
    return every


def _is(graph: Graph, name: str, dtype: str) -> bool:
    return bool(name) and graph.values[name].dtype == dtype


def _run_time(graph: Graph, names: Iterable[str]) -> list[str]:
    return [name for name in names if name and not graph.values[name].is_constant]


# ---- discontinuous operators ----


def why_it_stays(graph: Graph, part: Part) -> str:
    """Why float32 would give different results than float64; empty if it would not."""
    for cast in part.entries:
        source = graph.values[cast.inputs[0]].dtype
        if source in WIDE_INTEGERS:
            return f"'{cast.inputs[0]}' is {source}, of which float32 does not represent every value"
    if cast_away := _decides_by_cast(graph, part):
        return cast_away
    for node in part.operators:
        if reason := _decides(graph, node):
            return reason
        if not _is_arithmetic(node):
            return f"'{node.name}' ({node.op}) is not known to give the same in float32"
        if (count := terms(graph, node)) > LONGEST_SUM:
            return f"'{node.name}' ({node.op}) adds up {count} terms; in float32 at most {LONGEST_SUM}"
    for node in part.nodes:
        for data in _constants(graph, node, part.dtype):
            size = np.abs(data[np.isfinite(data) & (data != 0)])
            if size.size and (size.max() > LARGEST_CONSTANT or size.min() < SMALLEST_CONSTANT):
                worst = size.max() if size.max() > LARGEST_CONSTANT else size.min()
                return f"'{node.name}' ({node.op}) has the constant {worst:g}; float32 takes 2^-126 to 2^24"
        if (addend := _largest_addend(graph, node)) > LARGEST_ADDEND:
            return f"'{node.name}' ({node.op}) adds {addend:g}, beside which float32 loses digits; at most 1024"
    return ""


def _largest_addend(graph: Graph, node: Node) -> float:
    """The largest finite constant that a node adds or subtracts; of a norm, in standard deviations."""
    found: list[Array] = []
    if node.op in ("Add", "Sub", "Sum"):
        found = _constants(graph, node, "float64")
    elif node.op == "BatchNormalization":
        mean, variance = (graph.constant_of(name) for name in node.inputs[3:5])
        if mean is not None and variance is not None:
            found = [mean / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))]
    return max((float(np.abs(data[np.isfinite(data)]).max(initial=0.0)) for data in found), default=0.0)


def _is_arithmetic(node: Node) -> bool:
    return node.op in ARITHMETIC and (not node.domain or (node.domain, node.op) in FOREIGN)


def _decides_by_cast(graph: Graph, part: Part) -> str:
    for cast in part.exits:
        target = graph.values[cast.outputs[0]].dtype
        if "float" not in target:
            return f"'{cast.name}' (Cast) converts it to {target}"
    return ""


def _decides(graph: Graph, node: Node) -> str:
    """Why a node is discontinuous in a float input; empty if it is not."""
    if node.op in DISCONTINUOUS or (node.op == "GridSample" and node.attributes.get("mode") == "nearest"):
        return f"'{node.name}' ({node.op}) is discontinuous: the last digit of its input may decide"
    if node.op in ("QuantizeLinear", "DequantizeLinear", *DATA_MOVEMENT):
        return ""
    for name in node.outputs:
        made = graph.values[name].dtype if name else "float"
        if "float" not in made and (graph.users(name) or name in graph.outputs):
            return f"'{node.name}' ({node.op}) makes {made} from it"
    return ""


def _constants(graph: Graph, node: Node, dtype: str) -> list[Array]:
    found = [graph.constant_of(name) for name in node.inputs if name]
    return [data for data in found if data is not None and data.dtype == dtype]


def terms(graph: Graph, node: Node) -> int:
    """How many products or elements are summed in an element of the result."""
    x, y = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    op, rank = node.op, len(x.shape)
    if op.startswith(("Reduce", "Global")):
        return x.size // max(1, y.size)
    if op in ("AveragePool", "LpPool"):
        return int(np.prod(node.attributes["kernel_shape"], dtype=np.int64))
    if op in ("Conv", "ConvTranspose"):
        weight = graph.values[node.inputs[1]].shape
        return int(np.prod(weight, dtype=np.int64)) // weight[0 if op == "Conv" else 1]
    if op == "Gemm":
        return x.size // y.shape[0]
    if op == "MatMul":
        return x.shape[-1]
    if op == "Einsum":
        return _einsum_terms(graph, node)
    if op.endswith("oftmax"):
        return x.shape[int(node.attributes.get("axis", -1)) % rank]
    if op.endswith("Normalization"):
        return x.size // max(1, x.shape[0])
    return 1


def _einsum_terms(graph: Graph, node: Node) -> int:
    inputs, _, output = str(node.attributes["equation"]).replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for letters, name in zip(inputs.split(","), node.inputs, strict=True):
        before, _, after = letters.partition("...")
        shape = graph.values[name].shape
        sizes.update(zip(before, shape, strict=False))
        sizes.update(zip(reversed(after), reversed(shape), strict=False))
    return int(np.prod([size for letter, size in sizes.items() if letter not in output], dtype=np.int64))


# ---- in float32 ----


def _widen(graph: Graph, part: Part) -> set[str]:
    """Change every value of the part to float32, with Casts after inputs and before outputs of the graph, which keep
    their type. Returns the outputs of the Casts of inputs."""
    element, members = ELEMENTS[part.dtype], part.members
    made = {name for node in members for name in node.outputs if name and graph.values[name].dtype == part.dtype}
    read = {name for node in members for name in _run_time(graph, node.inputs)}
    entered = set()
    for name in graph.inputs:
        if name in read and graph.values[name].dtype == part.dtype:
            wide = _cast(graph, name, FLOAT, members[0])
            graph.replace_uses(name, wide, [node for node in members if name in node.inputs])
            entered.add(wide)
    for name in [name for name in graph.outputs if name in made]:
        maker = graph.producer(name)
        assert maker is not None
        inner = graph.fresh(name)
        graph.add_value(inner, part.dtype, graph.values[name].shape)
        graph.set_outputs(maker, [inner if output == name else output for output in maker.outputs])
        graph.replace_uses(name, inner)
        graph.add(Node("Cast", [inner], [name], {"to": element}, maker.name))
        made = made - {name} | {inner}
    for node in members:
        inputs = list(node.inputs)
        for index, name in enumerate(inputs):
            data = graph.constant_of(name) if name else None
            if data is not None and data.dtype == part.dtype:
                inputs[index] = graph.constant(data.astype(np.float32), name)
        graph.set_inputs(node, inputs)
        for key, value in node.attributes.items():
            if key in STATES_A_DTYPE and value == element:
                node.attributes[key] = FLOAT
            elif isinstance(value, np.ndarray) and value.dtype == part.dtype:
                node.attributes[key] = value.astype(np.float32)
    for name in made:
        graph.values[name].dtype = "float32"
    return entered


def _cast(graph: Graph, name: str, element: int, like: Node) -> str:
    dtype = {FLOAT: "float32", FLOAT16: "float16"}[element]
    return graph.emit("Cast", [name], graph.values[name].shape, name, like, dtype=dtype, attributes={"to": element})


# ---- rounded to float16 ----


def _is_plain(graph: Graph, cast: Node) -> bool:
    return {graph.values[name].dtype for name in (cast.inputs[0], cast.outputs[0])} == {"float16", "float32"}


def _check_float16(graph: Graph, part: Part) -> None:
    for node in part.operators:
        if not _is_arithmetic(node) and not _decides(graph, node):
            raise CompileError(
                f"'{node.name}' ({node.op}) is in float16, and is not known to give the same in float32; Cast to "
                "float32 in front of it"
            )


def _round(graph: Graph, part: Part, rounded: set[str]) -> None:
    """Round the inputs and outputs of a part that is now float32; or the outputs of all its operators.

    `rounded`: values that are representable in float16.
    """
    exact = all(node.op in ROUNDED_ONCE or _decides(graph, node) for node in part.operators)
    decides = _decides_by_cast(graph, part) or any(_decides(graph, node) for node in part.operators)
    everywhere = bool(exact or decides)
    for node in (*part.entries, *part.nodes):
        floats = [name for name in node.outputs if name and graph.values[name].dtype == "float32"]
        copies = node.op in DATA_MOVEMENT | CHOICES and node not in part.entries
        if copies and rounded.issuperset(n for n in _run_time(graph, node.inputs) if _is(graph, n, "float32")):
            rounded.update(floats)
        elif everywhere or node in part.entries:
            for name in floats:
                _round_output(graph, node, name)
            rounded.update(floats)
    for cast in part.exits:
        if cast.inputs[0] not in rounded:
            half = _cast(graph, cast.inputs[0], FLOAT16, cast)
            graph.set_inputs(cast, [_cast(graph, half, FLOAT, cast)])
    if part.operators:
        where = "after each" if everywhere else "where it is left"
        graph.notes.append(_note(part, f"computed in float32, rounded to float16 {where}"))


def _round_output(graph: Graph, node: Node, name: str) -> None:
    """Make `name` the node's output rounded to float16."""
    exact = graph.fresh(name)
    graph.add_value(exact, "float32", graph.values[name].shape)
    graph.set_outputs(node, [exact if output == name else output for output in node.outputs])
    half = _cast(graph, exact, FLOAT16, node)
    graph.add(Node("Cast", [half], [name], {"to": FLOAT}, node.name))
