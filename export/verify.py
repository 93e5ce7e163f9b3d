"""Does an exported file give torch's numbers? Compared in onnxruntime, plain and optimised, on the same inputs.

A graph whose float operators are all exact (elementwise arithmetic, products of integers) must be bit-equal: contract 1
of docs/numbers.md. Where the order of float sums, exp or erf enter, the stated tolerance holds, and codes that a
rounding tie tipped are counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from subbyte.errors import ExportError
from subbyte.export.engine import onnx_codes, products, run_onnx
from subbyte.export.functions import DOMAIN
from subbyte.export.graph import GraphView, view
from subbyte.formats.reference import EXACT_FLOAT_LIMIT
from subbyte.models.quant.observe import Observation, observed_codes

Array = npt.NDArray[Any]

# Largest |difference| of an output, relative to the largest |output|.
FLOAT_TOLERANCE = 1e-4  # no quantizer: only the order of float sums differs
MIXED_TOLERANCE = 5e-2  # float parts between quantizers: a value on a rounding tie moves a whole step
MIXED_CODES = 5e-2  # and at most this part of all codes may differ: a tie in an early layer moves many later ones

_EXACT_OPERATORS = """
    Abs Add Cast Clip Concat Constant ConstantOfShape Div Equal Expand Flatten Floor Gather Greater GreaterOrEqual
    Identity LeakyRelu Less LessOrEqual Max MaxPool Min Mul Neg Not PRelu Pad ReduceMax ReduceMin Relu Reshape Round
    Shape Sign Size Slice Split Squeeze Sub Tile Transpose Unsqueeze Where
"""
_EXACT = frozenset(_EXACT_OPERATORS.split())
_INTEGER_SUMS = ("Conv", "MatMul", "ReduceSum")


@dataclass(frozen=True)
class CodesCompared:
    """One activation quantizer: how many of its codes differ from torch's."""

    name: str  # of the ONNX value
    total: int
    differing: int  # ORT_DISABLE_ALL
    differing_optimized: int  # ORT_ENABLE_ALL


@dataclass(frozen=True)
class Verification:
    """What the comparison found."""

    samples: int
    inexact: tuple[str, ...]  # nodes whose float result may depend on the engine; empty: all must be bit-equal
    largest_output: float
    max_error: float  # largest |difference| of an output, ORT_DISABLE_ALL
    max_error_optimized: float
    differing_outputs: int  # output floats that are not bit-equal, both levels together
    codes: tuple[CodesCompared, ...]
    largest_accumulator: float  # of all quantized products; exact below 2^24
    largest_accumulator_at: str

    @property
    def exact(self) -> bool:
        """Every code and every output is bit-equal."""
        return self.differing_outputs == 0 and all(c.differing + c.differing_optimized == 0 for c in self.codes)

    def __str__(self) -> str:
        codes = sum(c.total for c in self.codes)
        wrong = sum(max(c.differing, c.differing_optimized) for c in self.codes)
        if self.exact:
            verdict = "bit-equal to torch in onnxruntime, plain and optimised"
        else:
            error = max(self.max_error, self.max_error_optimized)
            verdict = f"max error {error:.2g} (largest output {self.largest_output:.3g})"
            if codes:
                verdict += f", {wrong} of {codes} codes differ"
        text = f"{verdict}, on {self.samples} inputs"
        if self.largest_accumulator_at:
            text += f"; largest sum {self.largest_accumulator:.0f} (exact below {EXACT_FLOAT_LIMIT})"
        return text


def verify(model: onnx.ModelProto, module: nn.Module, inputs: Array) -> Verification:
    """Compare a file with its module in eval mode, on `inputs` [N, ...]; raises ExportError when they differ."""
    expected, recorded = torch_codes(module, inputs, model)
    names = list(recorded)
    output = model.graph.output[0].name
    sums = products(model)
    plain = run_onnx(model, inputs, [*names, *sums])
    optimized = run_onnx(model, inputs, optimized=True)
    looked_into = run_onnx(model, inputs, names, optimized=True)
    codes = tuple(
        CodesCompared(name, own.size, _differing(plain[name], own), _differing(looked_into[name], own))
        for name, own in recorded.items()
    )
    peaks = {name: float(np.abs(plain[name]).max(initial=0.0)) for name in sums}
    peak = max(peaks, key=lambda name: peaks[name], default="")
    result = Verification(
        samples=len(inputs),
        inexact=tuple(inexact_nodes(model)),
        largest_output=float(np.abs(expected).max(initial=0.0)),
        max_error=_error(plain[output], expected),
        max_error_optimized=_error(optimized[output], expected),
        differing_outputs=_differing(plain[output], expected) + _differing(optimized[output], expected),
        codes=codes,
        largest_accumulator=peaks.get(peak, 0.0),
        largest_accumulator_at=peak,
    )
    _judge(result)
    return result


def inexact_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose float32 result may depend on the engine."""
    graph = view(model)
    return [node.name for node in graph.nodes if not _is_exact(graph, node)]


def _is_exact(graph: GraphView, node: onnx.NodeProto) -> bool:
    if node.domain == DOMAIN:
        return True
    if node.op_type in _INTEGER_SUMS:
        return all(_integer_valued(graph, name) for name in node.input[: 1 if node.op_type == "ReduceSum" else 2])
    return node.op_type in _EXACT


def _integer_valued(graph: GraphView, name: str) -> bool:
    """Whether a value holds codes, levels or integer constants, past operators that only move them."""
    constant = graph.constant(name)
    if constant is not None:
        return bool(np.all(constant == np.rint(constant)))
    node = graph.producers.get(name)
    while node is not None and not node.domain and node.op_type in _MOVES:
        node = graph.producers.get(node.input[0])
    return node is not None and node.domain == DOMAIN and not node.op_type.startswith("Dequantize")


_MOVES = ("Transpose", "Reshape", "Pad", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "MaxPool", "Identity")


def _judge(result: Verification) -> None:
    accumulated = result.largest_accumulator
    if accumulated >= EXACT_FLOAT_LIMIT:
        raise ExportError(
            f"'{result.largest_accumulator_at}' reached a sum of {accumulated:.0f}; float32 sums of integers are exact "
            f"only below {EXACT_FLOAT_LIMIT}. Use fewer bits, or split the layer"
        )
    worst = max(result.codes, key=lambda c: c.differing + c.differing_optimized, default=None)
    wrong = sum(max(c.differing, c.differing_optimized) for c in result.codes)
    total = sum(c.total for c in result.codes)
    error = max(result.max_error, result.max_error_optimized)
    if not result.inexact and not result.exact:
        first = next((c.name for c in result.codes if c.differing + c.differing_optimized), "the output")
        raise ExportError(
            f"the file must equal torch bit for bit and does not: {result.differing_outputs} outputs and {wrong} of "
            f"{total} codes differ (max error {error:.3g}); the first difference is at '{first}'"
        )
    tolerance = MIXED_TOLERANCE if result.codes else FLOAT_TOLERANCE
    if not error <= tolerance * max(result.largest_output, 1e-6):
        raise ExportError(
            f"the file differs from torch by {error:.3g}, more than {tolerance:g} of the largest output "
            f"{result.largest_output:.3g}, on {result.samples} inputs"
        )
    if worst is not None and wrong > MIXED_CODES * total:
        raise ExportError(
            f"{wrong} of {total} codes differ from torch's, most at '{worst.name}': more than ties explain"
        )


def torch_codes(module: nn.Module, inputs: Array, model: onnx.ModelProto) -> tuple[Array, dict[str, Array]]:
    """Output of a module in eval mode, and its activation codes under the names that the exported file gives them."""
    output, observed = torch_observations(module, inputs, model)
    return output, {name: observation.codes.numpy() for name, observation in observed.items()}


def torch_observations(
    module: nn.Module, inputs: Array, model: onnx.ModelProto
) -> tuple[Array, dict[str, Observation]]:
    """As `torch_codes`, with what was rounded to the codes.

    Two layers that quantize the same value with the same step share one quantizer in the file; the codes stand once.
    Raises ExportError when the file has not all of the module's quantizers, or others.
    """
    with torch.no_grad(), observed_codes(module) as seen:
        output = _single(module(torch.from_numpy(inputs)))
    recorded: dict[str, list[Observation]] = {}
    for observation in seen:
        recorded.setdefault(observation.layer, []).append(observation)
    found: dict[str, Observation] = {}
    for name in onnx_codes(model):
        match = _CODES.fullmatch(name)
        calls = recorded.get(match["layer"].strip("/").replace("/", "."), []) if match else []
        if not calls:
            raise ExportError(f"the file quantizes '{name}', but torch has no such quantizer")
        found[name] = calls.pop(0)
    for layer, calls in recorded.items():
        for call in calls:
            if not any(torch.equal(call.codes, other.codes) for other in found.values()):
                raise ExportError(f"torch quantizes the input of '{layer}', but the file does not")
    return output, found


def _single(result: Any) -> Array:
    """The one tensor that a model gives, alone or in a tuple, list or dict."""
    values = list(result.values()) if isinstance(result, dict) else result
    if isinstance(values, (tuple, list)) and len(values) == 1:
        values = values[0]
    if not isinstance(values, torch.Tensor):
        raise ExportError(f"the model must give one output tensor, got {type(result).__name__} of {len(result)}")
    array: Array = values.numpy()
    return array


_CODES = re.compile(r"(?P<layer>/.*|)/(Quantize|QuantizePerToken|Binarize)(_\d+)?_output_0")


def _differing(a: Array, b: Array) -> int:
    """Elements that are not the same float32; all of them where the shapes differ. 0.0 and -0.0 are the same."""
    return int((a != b).sum()) if a.shape == b.shape else max(a.size, b.size)


def _error(a: Array, b: Array) -> float:
    return float(np.abs(a.astype(np.float64) - b).max(initial=0.0)) if a.shape == b.shape else float("inf")
