"""Compares an exported file, run in onnxruntime with and without graph optimization, with torch on the same inputs.

If all float operators of the graph are exact (elementwise arithmetic, products of integers) the results must be
bit-equal: contract 1 of docs/numbers.md. If they depend on the order of float sums, on exp or on erf, outputs must be
within the tolerance below, and the codes that differ because of rounding ties are counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from subbyte.dialect.exactness import EXACT_OPERATORS
from subbyte.dialect.function import Exactness, Quantizer, all_functions, function_of
from subbyte.dialect.graph import GraphView, view
from subbyte.dialect.known_operators import full_name
from subbyte.dialect.layers import SUMS, is_integer_product
from subbyte.dialect.state import states
from subbyte.errors import ExportError
from subbyte.export.engine import batches, joined, onnx_codes, products, run_onnx
from subbyte.export.outputs import output_arrays
from subbyte.export.stored_states import in_file
from subbyte.formats.reference import EXACT_FLOAT_LIMIT
from subbyte.models.quant.first_batch import not_starting
from subbyte.models.quant.observe import Observation, observe
from subbyte.models.state import named_states, states_kept

Array = npt.NDArray[Any]

# Largest |difference| of an output, relative to the largest |output|.
FLOAT_TOLERANCE = 1e-4  # without quantizers: only the order of float sums differs
ROUNDING = 1e-6  # absolute: rounding of intermediate values near 1, where the exact output is 0
MIXED_TOLERANCE = 5e-2  # float operators between quantizers: a value near a tie may change by one step
MIXED_CODES = 5e-2  # the fraction of codes that may differ: a tie in an early layer changes many codes of later ones


@dataclass(frozen=True)
class CodesCompared:
    """One activation quantizer: the number of its codes that differ from torch's."""

    name: str  # of the ONNX value
    total: int
    differing: int  # ORT_DISABLE_ALL
    differing_optimized: int  # ORT_ENABLE_ALL


@dataclass(frozen=True)
class OutputCompared:
    """One output compared with torch's."""

    name: str
    shape: tuple[int, ...]  # in the file
    largest: float  # |value|
    max_error: float  # largest |difference|, ORT_DISABLE_ALL; infinite where the shapes differ
    max_error_optimized: float  # the same, ORT_ENABLE_ALL
    differing: int  # elements that are not bit-equal, summed over both optimization levels

    @property
    def error(self) -> float:
        """The larger of the two errors; NaN if either output has a NaN."""
        return float(np.max([self.max_error, self.max_error_optimized]))


@dataclass(frozen=True)
class Verification:
    """The result of the comparison."""

    samples: int
    inexact: tuple[str, ...]  # nodes whose float result may depend on the engine; if none, all must be bit-equal
    outputs: tuple[OutputCompared, ...]  # in the order of the file
    codes: tuple[CodesCompared, ...]
    largest_accumulator: float  # of all quantized products; exact below 2^24
    largest_accumulator_at: str

    @property
    def largest_output(self) -> float:
        """The largest |value| of all outputs."""
        return max(output.largest for output in self.outputs)

    @property
    def max_error(self) -> float:
        """The largest |difference| of all outputs, ORT_DISABLE_ALL; NaN if `OutputCompared.error` is."""
        return float(np.max([output.max_error for output in self.outputs]))

    @property
    def max_error_optimized(self) -> float:
        """As `max_error`, ORT_ENABLE_ALL."""
        return float(np.max([output.max_error_optimized for output in self.outputs]))

    @property
    def differing_outputs(self) -> int:
        """Elements of all outputs that are not bit-equal, summed over both optimization levels."""
        return sum(output.differing for output in self.outputs)

    @property
    def exact(self) -> bool:
        """Whether every code and every output is bit-equal."""
        return self.differing_outputs == 0 and all(c.differing + c.differing_optimized == 0 for c in self.codes)

    def __str__(self) -> str:
        codes = sum(c.total for c in self.codes)
        wrong = sum(max(c.differing, c.differing_optimized) for c in self.codes)
        if self.exact:
            verdict = "bit-equal to torch in onnxruntime, plain and optimised"
            if len(self.outputs) > 1:
                verdict += f", in all {len(self.outputs)} outputs"
        else:
            verdict = "; ".join(
                f"max error {output.error:.2g} (largest output {output.largest:.3g})"
                + (f" of '{output.name}'" if len(self.outputs) > 1 else "")
                for output in self.outputs
            )
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
    sums = products(model)
    plain = run_onnx(model, inputs, [*names, *sums])
    optimized = run_onnx(model, inputs, optimized=True)
    optimized_codes = run_onnx(model, inputs, names, optimized=True)
    codes = tuple(
        CodesCompared(name, own.size, _differing(plain[name], own), _differing(optimized_codes[name], own))
        for name, own in recorded.items()
    )
    peaks = {name: float(np.abs(plain[name]).max(initial=0.0)) for name in sums}
    peak = max(peaks, key=lambda name: peaks[name], default="")
    result = Verification(
        samples=len(inputs),
        inexact=tuple(inexact_nodes(model)),
        outputs=tuple(
            OutputCompared(
                name=name,
                shape=shape,
                largest=float(np.abs(own.astype(np.float64)).max(initial=0.0)),
                max_error=_error(plain[name], own),
                max_error_optimized=_error(optimized[name], own),
                differing=_differing(plain[name], own) + _differing(optimized[name], own),
            )
            for (name, own), shape in zip(expected.items(), output_shapes(model).values(), strict=True)
        ),
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
    function = function_of(node)
    if function is not None:
        return function.exactness is Exactness.BIT_EXACT
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constant(node.input[1])
        return scale is not None and bool(np.all(scale == 1))  # of a state
    if node.op_type in SUMS:
        return is_integer_product(graph, node)
    return full_name(node) in EXACT_OPERATORS


def _judge(result: Verification) -> None:
    accumulated = result.largest_accumulator
    if accumulated >= EXACT_FLOAT_LIMIT:
        raise ExportError(
            f"'{result.largest_accumulator_at}' has a sum of {accumulated:.0f}; float32 sums of integers are exact "
            f"only below {EXACT_FLOAT_LIMIT}. Use fewer bits, or split the layer"
        )
    worst = max(result.codes, key=lambda c: c.differing + c.differing_optimized, default=None)
    wrong = sum(max(c.differing, c.differing_optimized) for c in result.codes)
    total = sum(c.total for c in result.codes)
    if not result.inexact and not result.exact:
        error = max(result.max_error, result.max_error_optimized)
        different = (c.name for c in result.codes if c.differing + c.differing_optimized)
        first = next(different, next((output.name for output in result.outputs if output.differing), ""))
        raise ExportError(
            f"the file must equal torch bit for bit, but {result.differing_outputs} outputs and {wrong} of {total} "
            f"codes differ (max error {error:.3g}); the first difference is at '{first}'"
        )
    tolerance = MIXED_TOLERANCE if result.codes else FLOAT_TOLERANCE
    for output in result.outputs:
        if not output.error <= allowed_error(tolerance, output.largest):
            raise ExportError(
                f"output '{output.name}' of the file differs from torch's by {output.error:.3g}, more than "
                f"{tolerance:g} of the largest output {output.largest:.3g} or {ROUNDING:g}, on {result.samples} inputs"
            )
    if worst is not None and wrong > MIXED_CODES * total:
        raise ExportError(
            f"{wrong} of {total} codes differ from torch's, most at '{worst.name}': more than {MIXED_CODES:.0%}, "
            "which rounding ties do not explain"
        )


def allowed_error(tolerance: float, largest: float) -> float:
    """The allowed |difference| of an output from torch's: relative to `largest`, its largest |value|."""
    return max(tolerance * largest, ROUNDING) if tolerance else 0.0


def output_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's outputs by name, in order; 0 for a dynamic size."""
    return {
        output.name: tuple(dim.dim_value for dim in output.type.tensor_type.shape.dim) for output in model.graph.output
    }


def input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """The shape of a model's first input that is not a state; 0 for a dynamic size."""
    before = {state.input for state in states(model)}
    first = next(value for value in model.graph.input if value.name not in before)
    return tuple(dim.dim_value for dim in first.type.tensor_type.shape.dim)


def torch_codes(module: nn.Module, inputs: Array, model: onnx.ModelProto) -> tuple[dict[str, Array], dict[str, Array]]:
    """Outputs and activation codes of a module in eval mode, by their names in the exported file."""
    outputs, observed = torch_observations(module, inputs, model)
    return outputs, {name: observation.codes.numpy() for name, observation in observed.items()}


def torch_observations(
    module: nn.Module, inputs: Array, model: onnx.ModelProto
) -> tuple[dict[str, Array], dict[str, Observation]]:
    """As `torch_codes`, with the values that were rounded to the codes.

    Two layers that quantize the same value with the same step share one quantizer in the file. A layer whose output is
    unused has none. Raises ExportError when the outputs or the other quantizers of file and module differ.
    """
    outputs, seen = _observed(module, inputs, model)
    paths = canonical_paths(module)
    recorded: dict[str, list[Observation]] = {}
    for observation in seen:
        recorded.setdefault(observation.caller, []).append(observation)
    names: dict[str, list[str]] = {}
    for name in onnx_codes(model):
        layer = paths.get(quantized_layer(name) or "", "")
        if layer not in recorded:
            raise ExportError(f"the file quantizes '{name}', but torch has no such quantizer")
        names.setdefault(layer, []).append(name)
    found: dict[str, Observation] = {}
    for layer, values in names.items():
        calls = _of_the_file(recorded[layer], len(values))
        if len(calls) != len(values):
            raise ExportError(
                f"the file quantizes the input of '{layer}' {len(values)} times, torch {len(calls)} times"
            )
        found.update(zip(values, calls, strict=True))
    for call in seen:
        if call.used and not any(_same(call, other) for other in found.values()):
            raise ExportError(f"torch quantizes the input of '{call.layer}', but the file does not")
    return outputs, {name: found[name] for name in onnx_codes(model)}


def _of_the_file(calls: list[Observation], count: int) -> list[Observation]:
    """The calls of one layer for which a file with `count` quantizers has one: without unused and repeated calls."""
    if len(calls) == count:
        return calls
    calls = [call for call in calls if call.used]
    if len(calls) == count:
        return calls
    different: list[Observation] = []
    for call in calls:
        if not any(_same(call, other) for other in different):
            different.append(call)
    return different


def _same(call: Observation, other: Observation) -> bool:
    """Whether both calls may share one quantizer in the file."""
    return torch.equal(call.values, other.values) and torch.equal(call.codes, other.codes)


def canonical_paths(module: nn.Module) -> dict[str, str]:
    """From every path of a submodule to its first one: a shared submodule has several."""
    first: dict[nn.Module, str] = {}
    return {path: first.setdefault(part, path) for path, part in module.named_modules(remove_duplicate=False)}


def quantized_layer(value: str) -> str | None:
    """The path of the layer whose quantized input a value of an exported file is; None for any other value."""
    names = "|".join(function.name for function in all_functions() if isinstance(function.role, Quantizer))
    match = re.fullmatch(rf"(?P<layer>/.*|)/({names})(_\d+)?_output_0", value)
    return match["layer"].strip("/").replace("/", ".") if match else None


def torch_outputs(module: nn.Module, inputs: Array, model: onnx.ModelProto) -> dict[str, Array]:
    """Outputs of a module on `inputs` [N, ...] by their names in the file, in batches as in `run_onnx`.

    Raises ExportError when the file has other outputs.
    """
    return _observed(module, inputs, model)[0]


def _observed(module: nn.Module, inputs: Array, model: onnx.ModelProto) -> tuple[dict[str, Array], list[Observation]]:
    """Outputs and quantizer calls, of all inputs in one run if every compared shape is proportional to the batch.

    Otherwise the results may depend on the batch, and torch runs the same batches as the file: a model with states from
    their initial values on, as `run_onnx` does.
    """
    shapes, carried = output_shapes(model), states(model)
    batch = input_shape(model)[0]
    graph = view(model)
    quantized = {graph.shape(name) for name in onnx_codes(model)}
    results = {name: shape for name, shape in shapes.items() if name not in {state.output for state in carried}}

    def run(part: Array) -> tuple[dict[str, Array], list[Observation]]:
        result, seen = observe(module, lambda: module(torch.from_numpy(part)))
        values = named_states(module)
        return _named_as(results, result) | {
            s.output: in_file(graph, s, values[s.input].numpy()) for s in carried
        }, seen

    with torch.no_grad(), not_starting(), states_kept(module, batch):
        if not carried and all(shape[:1] == (batch,) for shape in shapes.values()):
            outputs, seen = run(inputs)
            proportional = all(array.shape == (len(inputs), *shapes[name][1:]) for name, array in outputs.items())
            if proportional and all(_scales(call.codes.shape, len(inputs) / batch, quantized) for call in seen):
                return outputs, seen
        made, calls = zip(*(run(part) for part in batches(inputs, batch)), strict=True)
    if len(inputs) == batch:
        return made[0], calls[0]
    outputs = {name: joined([part[name] for part in made], batch, len(inputs)) for name in shapes}
    return outputs, [_one_call(slices, batch, len(inputs)) for slices in zip(*calls, strict=True)]


def _scales(shape: Sequence[int], times: float, quantized: Collection[tuple[int, ...] | None]) -> bool:
    """Whether `shape` is one of the shapes `quantized` with a first axis `times` as long."""
    return any(known and (known[0] * times, *known[1:]) == tuple(shape) for known in quantized)


def _one_call(slices: Sequence[Observation], batch: int, samples: int) -> Observation:
    """One call of a quantizer on all samples, from its calls on batches of them."""
    codes, values = (
        torch.from_numpy(joined([getattr(part, kind).numpy() for part in slices], batch, samples))
        for kind in ("codes", "values")
    )
    used = any(part.used for part in slices)
    return replace(slices[0], values=values, codes=codes, used=used)


def _named_as(shapes: Mapping[str, object], result: object) -> dict[str, Array]:
    """The result of a forward by the output names of the file; a single output may have any name."""
    arrays = output_arrays(result)
    if len(arrays) != len(shapes) or (len(shapes) > 1 and list(arrays) != list(shapes)):
        raise ExportError(
            f"torch returns the outputs {', '.join(arrays)}, the file has {', '.join(shapes)}: export the model again"
        )
    return dict(zip(shapes, arrays.values(), strict=True))


def _differing(a: Array, b: Array) -> int:
    """The number of elements that differ; all of them if the shapes differ. 0.0 equals -0.0."""
    return int((a != b).sum()) if a.shape == b.shape else max(a.size, b.size)


def _error(a: Array, b: Array) -> float:
    return largest_error(a, b) if a.shape == b.shape else float("inf")


def largest_error(a: Array, b: Array) -> float:
    """The largest |difference| of two arrays of one shape; equal infinities differ by 0; NaN if either has a NaN."""
    with np.errstate(invalid="ignore"):
        return float(np.where(a == b, 0.0, np.abs(a.astype(np.float64) - b.astype(np.float64))).max(initial=0.0))
