"""ONNX's backend node cases through compile, load and run: which are right, which are refused, and nothing else.

    python benchmarks/node_suite.py [--only SUBSTRING ...] [--retry WORD ...] [--json results/node_suite.json]

Each case is tried until it is right: as it is; with its own inputs as golden inputs; with its inputs after the first
made constants. A case is wrong, untyped (an exception that is not of subbyte.errors) or a crash if any try is. The
bundle runs without the replay of `compile`, which would turn a wrong number into a refusal. Cases run in a child
process that is started again when it dies or takes too long. Results are saved as they come: a run that was stopped
goes on where it was; `--retry` runs the cases again that ended in these words, `--only` those whose names contain a
substring. A line for each case, with the reason of a refusal, goes to standard output; the cases lie in the package.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

import subbyte
from subbyte.errors import ModelError, SubbyteError
from subbyte.files.output import write_file

RESULTS = Path(__file__).parent / "results" / "node_suite.json"
TRIES = ("right", "right with golden inputs", "right with constants")
FAULTS = ("wrong", "untyped", "crash", "time-out")
ABSOLUTE = 1e-5  # float32 sums in another order; the cases' own 1e-7 is for float64


# ---- one case, in the child ----


def constant_inputs(model: onnx.ModelProto, inputs: Sequence[Any]) -> onnx.ModelProto:
    """The model with its inputs after the first as initializers."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    later = [value.name for value in model.graph.input[1:]]
    for name, array in zip(later, inputs[1:], strict=True):
        if not isinstance(array, np.ndarray | np.generic):
            raise ModelError(f"input '{name}' is no tensor")
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    del made.graph.input[1:]
    return made


def difference(got: Any, wanted: Any, rtol: float, atol: float) -> str:
    """What differs between an output and the case's own; empty where nothing does."""
    if not isinstance(wanted, np.ndarray | np.generic):
        return f"a tensor, not {type(wanted).__name__}"
    if got.dtype != wanted.dtype or got.shape != wanted.shape:
        return f"{got.dtype} {list(got.shape)}, not {wanted.dtype} {list(wanted.shape)}"
    try:
        np.testing.assert_allclose(got, wanted, rtol, max(atol, ABSOLUTE))
    except AssertionError:
        at = int(np.argmax(~np.isclose(got, wanted, rtol, max(atol, ABSOLUTE), equal_nan=True)))
        return f"element {at} is {got.reshape(-1)[at]}, not {wanted.reshape(-1)[at]}"
    return ""


def attempt(case: Any, number: int, folder: Path) -> tuple[str, str]:
    """A word and a line on one try of a case."""
    inputs, wanted = case["data"][0]
    given = list(inputs) if number == 1 else None
    model = onnx.load_from_string(case["model"])
    path = folder / "case.subbyte"
    try:
        if number == 2:
            model, inputs = constant_inputs(model, inputs), inputs[:1]
            given = list(inputs)
        subbyte.compile(model, path, golden_inputs=given, replay=False)
        with subbyte.load(path, threads=1) as session:
            names = [value.name for value in model.graph.output]
            made = session.run([np.asarray(x) for x in inputs], check_finite=False)
            outputs = [made[name] for name in names] if isinstance(made, dict) else [made]
    except SubbyteError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Exception as error:
        return "untyped", f"{type(error).__name__}: {error}"
    for name, got, want in zip(names, outputs, wanted, strict=True):
        line = difference(got, want, case["rtol"], case["atol"])
        if line:
            return "wrong", f"{TRIES[number][6:] or 'as it is'}: output '{name}': {line}"
    return TRIES[number], ""


def child(pipe: Connection) -> None:
    """Answer every case with a word and a line."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            case = pipe.recv()
            tries = range(len(TRIES) if len(case["data"][0][0]) > 1 else 2)  # nothing to make constant of one input
            for number in tries:
                word, line = attempt(case, number, Path(folder))
                if word != "refused":
                    break
            pipe.send((word, " ".join(line.split())))


# ---- all cases, in the parent ----


def cases() -> Iterator[Any]:
    """The node cases of the installed onnx package."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return iter(collect_testcases(None))


def array(value: Any) -> Any:
    """Data of a case as NumPy has it; 4-bit and 8-bit floats come as TensorProto."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def data_of(case: Any) -> dict[str, Any]:
    """What a child needs of a case."""
    sets = [tuple([array(value) for value in side] for side in both) for both in case.data_sets]
    return {"model": case.model.SerializeToString(), "data": sets, "rtol": case.rtol, "atol": case.atol}


class Worker:
    """A child process that is started again when it dies or takes longer than `limit` seconds."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.process: Any = None

    def run(self, case: Any) -> tuple[str, str]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=child, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        data = data_of(case)
        with contextlib.suppress(EOFError, ConnectionError):
            self.pipe.send(data)
            if self.pipe.poll(self.limit):
                word, line = self.pipe.recv()
                return word, line
            self.stop()
            return "time-out", f"more than {self.limit:.0f} s"
        self.process.join()
        code = self.process.exitcode
        self.process = None
        return "crash", signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def save(path: Path, results: dict[str, str]) -> None:
    counts = collections.Counter(text.split(":")[0] for text in results.values())
    data = {"onnx": onnx.__version__, "summary": dict(sorted(counts.items())), "cases": dict(sorted(results.items()))}
    write_file(path, (json.dumps(data, indent=0) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="SUBSTRING")
    parser.add_argument("--retry", nargs="*", default=[], metavar="WORD", help=f"refused, {', '.join(FAULTS)}, all")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--limit", type=float, default=120, help="seconds for a case")
    arguments = parser.parse_args()
    results: dict[str, str] = json.loads(arguments.json.read_text())["cases"] if arguments.json.exists() else {}
    worker = Worker(arguments.limit)
    for case in cases():
        if arguments.only and not any(part in case.name for part in arguments.only):
            continue
        known = results.get(case.name, "").split(":")[0]
        if known and not arguments.only and not {known, "all"} & set(arguments.retry):
            continue
        word, line = worker.run(case)
        print(f"{case.name}: {word}{': ' + line if line else ''}", flush=True)
        results[case.name] = f"{word}: {line[:200]}" if word in FAULTS else word
        save(arguments.json, results)
    worker.stop()
    counts = collections.Counter(text.split(":")[0] for text in results.values())
    print(f"{len(results)} cases:", ", ".join(f"{count} {word}" for word, count in counts.most_common()))
    sys.exit(any(word in FAULTS for word in counts))


if __name__ == "__main__":
    main()
