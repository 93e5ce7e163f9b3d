"""A graph compiled and run by us, beside what onnxruntime and ONNX's reference evaluator give for it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from kinds import Fault

import subbyte
from subbyte.dialect.exactness import PRODUCTS
from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE


@dataclass(frozen=True)
class Case:
    """A model and its run-time inputs; `half`: some of it is in half precision, which engines round elsewhere."""

    model: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    label: str
    half: bool = False


def references(case: Case) -> list[list[np.ndarray]]:
    """What onnxruntime and the reference evaluator give, where they can."""
    from onnx.reference import ReferenceEvaluator

    found = []
    with contextlib.suppress(Exception):
        found.append(by_onnxruntime(case.model, case.inputs))
    with contextlib.suppress(Exception), np.errstate(all="ignore"):
        found.append([np.asarray(y) for y in ReferenceEvaluator(case.model).run(None, case.inputs)])
    return found


def by_onnxruntime(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, each node by itself. Raises what onnxruntime raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def overflows(case: Case) -> bool:
    """Whether a product of finite operands is not finite: the order of its sum then makes it an infinity or NaN."""
    nodes = [node for node in case.model.graph.node if node.op_type in PRODUCTS]
    made = {name for node in case.model.graph.node for name in node.output}
    wanted = list(dict.fromkeys(name for n in nodes for name in (*n.input, *n.output) if name in made))
    traced = onnx.ModelProto()
    traced.CopyFrom(case.model)
    del traced.graph.output[:]
    traced.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    values = dict(case.inputs) | {t.name: onnx.numpy_helper.to_array(t) for t in traced.graph.initializer}
    try:
        values |= dict(zip(wanted, by_onnxruntime(traced, case.inputs), strict=True))
    except Exception:  # onnxruntime raises what it likes; nothing is excused then
        return False
    finite = {name: bool(np.isfinite(value).all()) for name, value in values.items() if value.dtype.kind == "f"}
    return any(
        all(finite.get(name, True) for name in node.input) and not finite.get(node.output[0], True) for node in nodes
    )


def apart_where_not_finite(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
    """Whether outputs of the same shapes are equal wherever both are finite."""
    if [(a.dtype, a.shape) for a in got] != [(b.dtype, b.shape) for b in wanted]:
        return False
    both = [np.isfinite(a) & np.isfinite(b) for a, b in zip(got, wanted, strict=True)]
    return all(equal(a[at], b[at], half=False) for a, b, at in zip(got, wanted, both, strict=True))


def equal(got: np.ndarray, wanted: np.ndarray, half: bool, tie: float = 0.0) -> bool:
    """Integers alike; floats within the tolerance of bundles, or that of half precision. `tie` may be added to both.

    float64 too: it is computed in float32, as the report says.
    """
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        return False
    if got.dtype.kind != "f":
        return bool(np.array_equal(got, wanted)) or bool(
            tie and (np.abs(got.astype(np.float64) - wanted.astype(np.float64)) <= tie).all()
        )
    with np.errstate(all="ignore"):
        finite = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
        relative, absolute = (1e-2, 1e-2) if half else (RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)
        return bool(np.allclose(got, wanted, relative, absolute * max(1.0, finite) + tie, equal_nan=True))


def judged(case: Case, folder: Path) -> str:
    """What came of it: "right", or that no other engine takes the graph. Raises our errors; Fault where it is wrong.

    Where a rounding tie of a quantizer may move an output, the bundle says by how much; engines may differ by that.
    "overflows": the outputs differ in infinities and NaN alone, and a sum overflowed.
    """
    path = folder / "made.subbyte"
    subbyte.compile(case.model, path, golden_inputs=list(case.inputs.values()), replay=False)
    try:
        with subbyte.load(path, threads=1) as session:
            made: Any = session.run(case.inputs, check_finite=False)
            ties = session.manifest.golden_ties
    finally:
        path.unlink()
    expected = references(case)  # of what we take alone: other engines crash at some of what we refuse
    got = list(made.values()) if isinstance(made, dict) else [made]
    if not expected:
        return "no reference"
    for wanted in expected:
        if len(wanted) == len(got) and all(map(equal, got, wanted, [case.half] * len(got), ties)):
            return "right"
    if any(apart_where_not_finite(got, wanted) for wanted in expected) and overflows(case):
        return "overflows"
    raise Fault(f"{case.label}: {_start(got)} for {' or '.join(map(_start, expected))}")


def _start(arrays: Sequence[np.ndarray]) -> str:
    return str([f"{a.dtype}{list(a.shape)} {a.reshape(-1)[:6].tolist()}" for a in arrays])
