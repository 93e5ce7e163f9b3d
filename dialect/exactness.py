"""Which results of an ONNX file are the same in every engine, and which may differ because of rounding ties.

A float sum depends on the order of its terms. A quantizer after it may round the sums of two engines to different codes
if a tie is between them: from there on the results differ by a whole step. `RoundingTies` propagates this through the
graph, from the nodes with inexact float results to the outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
from onnx import TensorProto

from subbyte.dialect.function import Exactness, Quantizer, find
from subbyte.dialect.function_calls import STANDARD_DOMAINS
from subbyte.dialect.graph import DATA_MOVEMENT
from subbyte.dialect.known_operators import ROUNDING, full_name
from subbyte.dialect.layers import sums_integers
from subbyte.dialect.names import DOMAIN
from subbyte.dialect.state import State, states

Array = npt.NDArray[Any]

OF_LARGEST = 5e-2  # a tie in front of other layers moves an output by at most this part of its largest magnitude

_CHOICES = "Abs Clip GlobalMaxPool Max MaxPool Min Neg ReduceMax ReduceMin Relu Where"
_ONE_ROUNDING = """
    Add Cast Ceil Constant ConstantOfShape Div Equal Floor Greater GreaterOrEqual LeakyRelu Less LessOrEqual Mul Not
    PRelu Round Shape Sign Size Sub
"""
CHOICES = frozenset(_CHOICES.split())  # whose results are among their inputs, but for the sign
EXACT_OPERATORS = DATA_MOVEMENT | CHOICES | frozenset(_ONE_ROUNDING.split())  # one rounding an element, or none

SUMS = {"Add", "Sub", "Mul"}  # of whole numbers: whole numbers
PRODUCTS = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "ReduceSum"}
INTEGER_SUMS = {"MatMulInteger", "ConvInteger"}  # products of 8-bit integers as int32
INTEGER_PRODUCTS = INTEGER_SUMS | {"QLinearMatMul", "QLinearConv"}
PLACES = {"ArgMax", "ArgMin", "NonZero"}  # integers that no step measures
VALUES_AND_INDICES = {"TopK", "MaxPool"}  # whose second output is indices
STATES_OUTPUT_DTYPE = {"to", "dtype", "output_dtype", "value"}
TO_INTEGERS = ROUNDING | {"Round", "Floor", "Ceil"}


@dataclass(frozen=True)
class _Facts:
    """What is known of a value."""

    inexact: bool = False  # a float that may depend on the engine
    ties: int = 0  # quantizers in a row that rounded such a float: 1, or 2 for more
    step: float = 0.0  # of the last of them, where the value is still a multiple of it
    whole: bool = False  # integers, in whatever dtype
    index: bool = False  # the rank or index of an inexact value: it differs only where two values are nearly equal
    half: bool = False  # in float16
    coarse: bool = False  # it depends on what is computed in float16


def largest_of(array: Array) -> float:
    """The largest finite magnitude; 0 where there is none."""
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    return float(np.abs(finite.astype(np.float64)).max(initial=0.0))


class RoundingTies:
    """How rounding ties and float16 may change the values of a graph; its nodes need not be sorted."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.coarse = False  # whether anything in float16 rounds more than once
        self.rounding = {(f.domain, f.name) for f in model.functions if any(map(_quantizes, f.node))}
        self.facts = {
            value.name: _Facts(whole=_is_integer(value), half=value.type.tensor_type.elem_type == TensorProto.FLOAT16)
            for value in graph.input
        }
        for name, tensor in self.constants.items():
            self.facts.pop(name, None)
            if tensor.data_type == TensorProto.FLOAT16:
                self.facts[name] = _Facts(half=True)
        pairs = states(model)
        # The output of a state is an input of the next run: it takes two runs until `ties` is at its end, and one more
        # for each further state that a fact goes through.
        for _ in range(len(pairs) + 2 if pairs else 1):
            self._follow(graph.node)
            self.facts |= {pair.input: self._joined(pair) for pair in pairs}

    def _joined(self, pair: State) -> _Facts:
        """What is true of a state in every run, that of the first and of those after it."""
        first, later = self._of(pair.input), self._of(pair.output)
        return _Facts(
            inexact=first.inexact or later.inexact,
            ties=max(first.ties, later.ties),
            step=max(first.step, later.step),
            whole=first.whole and later.whole,
            index=first.index or later.index,
            half=later.half,
            coarse=first.coarse or later.coarse,
        )

    def _follow(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """The facts of all that the nodes make."""
        waiting = list(nodes)
        made = {name for node in waiting for name in node.output}
        for name in made:
            self.facts.pop(name, None)
        while waiting:
            later = []
            for node in waiting:
                if any(name in made and name not in self.facts for name in node.input):
                    later.append(node)
                    continue
                inputs = [self._of(name) for name in node.input if name]
                result = self._in_float16(node, inputs, self._result(node, inputs))
                self.facts.update(dict.fromkeys(node.output, result))
                self.facts.update(dict.fromkeys(_float_outputs(node), _unrounded(inputs, result)))
                if node.op_type in VALUES_AND_INDICES and len(node.output) > 1:
                    self.facts[node.output[1]] = _index(inputs[0])
            if len(later) == len(waiting):
                break  # a cycle, which is refused elsewhere
            waiting = later

    def allowances(self, outputs: Mapping[str, Array]) -> dict[str, float]:
        """How much a rounding tie may change an element of each output, given examples of the outputs; 0: not at all.

        Integers from a single quantizer change by one code. After more layers, or in float16, a value changes by a
        fraction of the largest magnitude, or by a step if that is larger. Indices may change by any amount: it is to be
        measured, and 0 here.
        """
        found = {}
        for name, array in outputs.items():
            known = self.facts.get(name, _Facts(inexact=True, ties=2))
            largest = OF_LARGEST * largest_of(array)
            if array.dtype.kind == "f" and (known.ties or name in self.coarse_values):
                found[name] = max(largest, known.step)
            elif not known.ties:
                found[name] = 0.0
            else:
                found[name] = 1.0 if known.ties == 1 else max(1.0, float(np.ceil(largest)))
        return found

    @cached_property
    def coarse_values(self) -> set[str]:
        """Those that depend on float16 where it is not rounded once: engines round such values more or less often."""
        return {name for name, known in self.facts.items() if self.coarse and known.coarse}

    @property
    def indices(self) -> set[str]:
        """The values that are ranks or indices of inexact values."""
        return {name for name, known in self.facts.items() if known.index}

    def _in_float16(self, node: onnx.NodeProto, inputs: list[_Facts], result: _Facts) -> _Facts:
        """The facts with those of float16."""
        stated = [a.t.data_type if a.HasField("t") else a.i for a in node.attribute if a.name in STATES_OUTPUT_DTYPE]
        reads = any(x.half for x in inputs)
        half = TensorProto.FLOAT16 in stated if stated else reads
        computes = (half or reads) and node.op_type not in DATA_MOVEMENT | CHOICES | {"Cast"}
        self.coarse = self.coarse or (computes and node.op_type not in EXACT_OPERATORS)
        coarse = not result.whole and (computes or any(x.coarse for x in inputs))
        return replace(result, half=half, coarse=coarse)

    def _of(self, name: str) -> _Facts:
        return self.facts.get(name, _Facts())

    def _is_whole(self, name: str) -> bool:
        return self._of(name).whole or (name in self.constants and holds_integers(self.constants[name]))

    def _step(self, node: onnx.NodeProto) -> float:
        """The largest of the constant scales of a quantizer, 1 where there is none."""
        scale = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        array = None if scale is None else onnx.numpy_helper.to_array(scale)
        return 1.0 if array is None or not array.size else float(np.abs(array.astype(np.float64)).max())

    def _result(self, node: onnx.NodeProto, inputs: list[_Facts]) -> _Facts:
        kind = ("" if node.domain in STANDARD_DOMAINS else node.domain, node.op_type)
        first = inputs[0] if inputs else _Facts()
        ties = 2 if any(x.ties for x in inputs) else 0
        inexact = any(x.inexact for x in inputs)
        if _quantizes(node) or (kind == ("", "Cast") and _to_integer(node) and not first.whole):
            rounded = min(2, first.ties + 1) if first.inexact or first.ties else 0
            scaled = kind[0].startswith("qonnx.")
            return _Facts(ties=rounded, step=self._step(node) if scaled else 1.0, whole=not scaled)
        if kind[1] == "DequantizeLinear":
            return _Facts(first.inexact, first.ties, self._step(node) * (first.step or 1.0))
        ours = find(kind[1]) if kind[0] == DOMAIN else None
        if ours is not None and ours.exactness is Exactness.BIT_EXACT:
            return _Facts(inexact, ties, whole=ours.integers)
        if kind[0]:
            return _Facts(True, 2 if ties or kind in self.rounding else 0)
        if kind[1] in PLACES:
            return _index(first)
        if kind[1] == "TopK":
            return replace(first, index=False)
        if kind[1] in INTEGER_SUMS:
            return _Facts(ties=ties, whole=True)
        if kind[1] in PRODUCTS:
            exact = sums_integers(node, self._is_whole) and not inexact
            return _Facts(not exact, ties, whole=exact)
        if kind[1] not in EXACT_OPERATORS:
            return _Facts(True, ties)
        whole = kind[1] in DATA_MOVEMENT | CHOICES | SUMS | {"Cast"} and all(
            self._is_whole(name) for name in node.input if name
        )
        if kind[1] in DATA_MOVEMENT | CHOICES | {"Cast"}:
            same = max(inputs, key=lambda x: (x.ties, x.step), default=first)
            return replace(same, inexact=inexact, whole=whole)
        return _Facts(inexact, ties, whole=whole)


def _quantizes(node: onnx.NodeProto) -> bool:
    ours = find(node.op_type) if node.domain == DOMAIN else None
    return full_name(node) in TO_INTEGERS or (ours is not None and isinstance(ours.role, Quantizer))


def _float_outputs(node: onnx.NodeProto) -> list[str]:
    """The outputs that are floats although the first output may be integers: the steps of codes."""
    if full_name(node) == "DynamicQuantizeLinear":
        return list(node.output[1:2])
    return list(node.output[1:]) if node.domain == DOMAIN else []


def _unrounded(inputs: Sequence[_Facts], codes: _Facts) -> _Facts:
    """The facts of a step that is computed from the same inputs as `codes`, but not rounded."""
    inexact = codes.inexact or any(x.inexact for x in inputs)
    ties, coarse = 2 if any(x.ties for x in inputs) else 0, any(x.coarse for x in inputs)
    return _Facts(inexact, ties, half=codes.half, coarse=coarse)


def _index(of: _Facts) -> _Facts:
    return _Facts(whole=True, index=of.inexact or of.ties > 0)


def _is_integer(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type.elem_type
    return bool(kind) and onnx.helper.tensor_dtype_to_np_dtype(kind).kind in "iub"


def _to_integer(node: onnx.NodeProto) -> bool:
    kind = next((a.i for a in node.attribute if a.name == "to"), 0)
    return bool(kind) and onnx.helper.tensor_dtype_to_np_dtype(kind).kind in "iu"


def holds_integers(tensor: onnx.TensorProto) -> bool:
    """Whether every element is a whole number, in whatever dtype."""
    array = onnx.numpy_helper.to_array(tensor).reshape(-1)
    if array.dtype.kind in "iub":
        return True
    some = array[:64]  # of a float weight the first few tell
    return bool(np.all(some == np.rint(some)) and np.all(array == np.rint(array)))
