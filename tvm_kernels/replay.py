"""Run the golden inputs of a new bundle in a child process before it is put in place, and name what differs.

The child runs the runtime's own command line, `subbyte check BUNDLE`: a wrong kernel may crash it or not end, and it
loads the bundle as a device would, without onnx or TVM. It starts, and imports, while code is still being generated.
Only when its outputs differ are the results of single operators computed, by the reference implementation of the
lowered graph.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from subbyte.errors import CompileError, ModelError
from subbyte.onnx_files.loader import Source
from subbyte.runtime.bundle import open_bundle
from subbyte.runtime.golden import within_tolerance
from subbyte.runtime.npy import load_npy
from subbyte.runtime.tracing import decode
from subbyte.tvm_kernels import reference_engine
from subbyte.tvm_kernels.emit import Golden
from subbyte.tvm_kernels.graph import Array, Graph
from subbyte.tvm_kernels.machines import Target
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.plan import KernelCall, Plan

SECONDS = 60.0  # for the child's start and small models
MACS_A_SECOND = 1e7  # the slowest that a kernel may be: a hundredth of the plain C loops
# Imports what `check` needs, then waits for its arguments.
START = """
import json, sys
import subbyte.cli.check, subbyte.runtime.session, subbyte.runtime.trace
from subbyte.cli import main
main(json.loads(sys.stdin.readline()), "subbyte")
"""
ASK = (
    "Random inputs may be none that the model is made for: give others with --golden-inputs FILE.npz (golden_inputs=). "
    "If these differ too, please report it with the model; --no-replay (replay=False) writes the bundle all the same, "
    "and `subbyte check BUNDLE --trace FOLDER` what each of its operators gives"
)


def reason_not_to_replay(target: Target, golden: Golden | None) -> str | None:
    """Why a bundle for this target cannot be replayed here; None if it can."""
    if golden is None:
        return "there is no golden run"
    if not target.emitter.form.is_loaded:
        return f"the bundle holds {target.emitter.form.holds}"
    if not target.is_native:
        return f"this machine does not run code for {target.triple}"
    missing = sorted(target.features - host_features())
    if missing:
        return f"this CPU lacks {', '.join(missing)}"
    return None if sys.executable else "there is no Python interpreter to start"


@dataclass(frozen=True)
class _Ended:
    """How the child ended: `status` as of subprocess, None when its time was up."""

    status: int | None
    output: str

    def __str__(self) -> str:
        if self.status is None:
            return "did not finish in time"
        if self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        return "failed: " + "; ".join(self.output.strip().splitlines() or ["no reason given"])


@dataclass(frozen=True)
class Origin:
    """What a plan was made of, for the message of a replay that fails."""

    graph: Callable[[], Graph]  # as it was when the plan was made of it
    model: Source | None = None


def replay(
    child: Child,
    bundle: Path,
    plan: Plan,
    golden: Golden,
    origin: Origin | None = None,
    seconds: float | None = None,
) -> None:
    """Raise CompileError unless the bundle gives its golden outputs; `origin` serves to name where it differs.

    `seconds`: the time limit, by default one that grows with the model's work.
    """
    if seconds is None:
        seconds = SECONDS + sum(call.macs for call in plan.calls) / MACS_A_SECOND
    ended = child.check(bundle, seconds)
    if ended.status == 0:
        return
    with tempfile.TemporaryDirectory(prefix="subbyte-") as name:
        with Child() as again:
            traced = again.check(bundle, seconds, Path(name))
        done = sum((Path(name) / str(index)).exists() for index in range(len(plan.calls)))
        if done < len(plan.calls):
            started = plan.calls[done]
            where = f"the last operator started is {_called(started)}"
            if traced.status in (0, 1):  # it ended before any operator ran
                where = "no operator can be named"
        else:
            where = _first_difference(bundle, plan, golden, origin, Path(name))
    raise CompileError(f"the compiled model does not replay its golden run ({ended}): {where}. {ASK}")


class Child:
    """A process that will run `subbyte check` once, in an empty folder; a context manager, which ends it."""

    def __init__(self) -> None:
        environment = dict(os.environ)
        if "PYTHONPATH" in environment:
            entries = environment["PYTHONPATH"].split(os.pathsep)
            environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in entries if entry)
        # Python looks for modules in the working folder first: in an empty one there is nothing to take for its own.
        self._empty = tempfile.TemporaryDirectory(prefix="subbyte-")
        self._process = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._empty.name,
            env=environment,
        )

    def check(self, bundle: Path, seconds: float, trace: Path | None = None) -> _Ended:
        """Run the golden inputs of a bundle, for so long at most; `trace`: a folder for the results of operators."""
        arguments = ["check", str(bundle.resolve()), *(["--trace", str(trace)] if trace else [])]
        try:
            output, _ = self._process.communicate(json.dumps(arguments).encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            return _Ended(None, "")
        return _Ended(self._process.returncode, output.decode("utf-8", "replace"))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        with self._process:  # closes its pipes, and waits for it
            pass
        self._empty.cleanup()


def _called(call: KernelCall) -> str:
    return f"'{call.name}' (kernel '{call.kernel}')"


def _first_difference(bundle: Path, plan: Plan, golden: Golden, origin: Origin | None, trace: Path) -> str:
    """A sentence that names the first operator whose result is not the reference implementation's.

    Results that a rounding tie of an earlier operator explains count only when nothing differs by more.
    """
    if origin is None:
        return "no reference implementation is at hand to say where"
    graph = origin.graph()
    feeds = _first_run(plan, golden, graph)
    found = list(_differences(bundle, plan, graph, feeds, trace))
    if not found:
        wrong = "" if origin.model is None else _first_wrong_value(plan, feeds, origin.model, trace)
        if plan.states and not wrong:
            return "every operator of the first run equals its reference implementation: a state or a later run differs"
        return (
            f"every operator equals its reference implementation, so the lowered graph is not what the file says{wrong}"
        )
    call, _, text = next((row for row in found if row[1]), found[0])
    return f"{_called(call)} is the first operator that differs from its reference implementation: {text}"


def _first_run(plan: Plan, golden: Golden, graph: Graph) -> dict[str, Array]:
    """What the graph reads in the first of the golden runs, by name: a trace is of that run."""
    inputs = [array[0] for array in golden.inputs] if plan.states else golden.inputs
    feeds = {tensor.name: array for tensor, array in zip(plan.inputs, inputs, strict=True)}
    return feeds | {state.input: initial for state, initial in graph.states.items()}


def _first_wrong_value(plan: Plan, feeds: Mapping[str, Array], model: Source, trace: Path) -> str:
    """Which value of the file is the first that differs from the reference engine's, of those that can be compared."""
    copy = onnx.ModelProto()
    copy.CopyFrom(reference_engine.loaded(model))
    makers = {name: node for node in copy.graph.node for name in node.output}
    traced = {
        tensor.name: trace / f"{index}-{number}.npy"
        for index, call in enumerate(plan.calls)
        for number, tensor in enumerate(call.outputs)
        if tensor.storage == "float" and tensor.name in makers
    }
    outputs = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in traced if name not in outputs)
    try:
        values, engine = reference_engine.run(copy, list(traced), feeds)
    except ModelError:  # it may not show every value
        return ""
    for (name, file), want in zip(traced.items(), values, strict=True):
        if not file.exists():
            continue
        try:
            got = load_npy(file, str(want.dtype), want.shape)
        except ValueError:  # lowering may hold it otherwise than the file does
            continue
        if not within_tolerance(got, want).all():
            node = makers[name]
            return f": '{name}' of node '{node.name or name}' ({node.op_type}) is the first to differ from {engine}"
    return ""


def _differences(
    bundle: Path, plan: Plan, graph: Graph, feeds: Mapping[str, Array], trace: Path
) -> Iterator[tuple[KernelCall, bool, str]]:
    """Each call, whether its result differs by more than a rounding tie does, and how, in the order of the plan."""
    from subbyte.tvm_kernels.interpret import interpret

    expected = interpret(graph, feeds, every=True)
    with open_bundle(bundle) as opened:
        operators = opened.manifest.operators
    for index, (call, operator) in enumerate(zip(plan.calls, operators, strict=True)):
        for number, (tensor, output) in enumerate(zip(call.outputs, operator.outputs, strict=True)):
            file = trace / f"{index}-{number}.npy"
            if not file.exists() or tensor.value not in expected:
                continue
            want = decode(output, expected[tensor.value])
            got = load_npy(file, str(want.dtype), want.shape)
            wrong = ~within_tolerance(got, want)
            if wrong.any():
                at = tuple(int(axis[0]) for axis in np.nonzero(wrong))
                text = f"'{tensor.name}' has {got[at]} at {list(at)}, expected {want[at]}; "
                text += f"{np.count_nonzero(wrong):,} of {wrong.size:,} elements differ"
                yield call, _is_gross(got, want, wrong), text


def _is_gross(got: Array, want: Array, wrong: Array) -> bool:
    """Whether integers differ by more than one code, or more than 1% of all elements differ."""
    if np.count_nonzero(wrong) > 0.01 * wrong.size:
        return True
    return bool((np.abs(got.astype(np.float64) - want.astype(np.float64))[wrong] > 1).any())
