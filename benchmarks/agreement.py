"""Whether bundles decide what onnxruntime decides: trained models on the test inputs of their data, one by one.

    python benchmarks/agreement.py runs/text-ternary runs/text-int8 --inputs 1000 --json agreement.json
    python benchmarks/agreement.py                      # an untrained decoder on random tokens, float, int8 and ternary

Each checkpoint is exported and compiled for this machine. onnxruntime runs without graph optimization, the reference of
the golden runs. Where float arithmetic lies between quantizers (norms, softmax, SiLU), a value next to a rounding tie
may fall to its other side; the table says how far the outputs move, and whether a decision changes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_on import measured_on

import subbyte
from subbyte.dialect.example_inputs import example_inputs
from subbyte.export import export, load_onnx, run_onnx
from subbyte.files.output import write_file
from subbyte.models import load_checkpoint, load_data, untrained
from subbyte.models.tasks import Task, get_task

UNTRAINED = ("float", "int8", "ternary")
CONTEXT, VOCABULARY = 64, 256  # of the untrained decoder
CHUNK = 50  # inputs that onnxruntime runs before the bundle does


@dataclass(frozen=True)
class Agreement:
    """What was compared; `decisions` are the argmax of each logits, several for an input of tokens or pixels."""

    model: str
    scheme: str
    inputs: int
    decisions: int
    changed_decisions: int
    changed_inputs: int  # with a changed decision
    changed_last: int  # of the last decision of an input: the token after the window
    largest: float  # |value| of all outputs of onnxruntime
    max_error: float  # of all outputs
    inputs_apart: int  # inputs with an output that is off by more than 1e-5 of `largest`: a code has moved

    def __str__(self) -> str:
        return (
            f"{self.model:<28}{self.scheme:<9}{self.inputs:>7,}{self.changed_inputs:>9,}{self.changed_last:>8,}"
            f"{self.changed_decisions:>9,} of {self.decisions:<10,}{self.max_error / self.largest:>10.2g}"
            f"{self.inputs_apart:>8,}"
        )


HEAD = f"{'model':<28}{'scheme':<9}{'inputs':>7}{'changed':>9}{'last':>8}{'decisions':>23}{'max error':>10}{'moved':>8}"


def agreement(file: Path, inputs: np.ndarray[Any, Any], task: Task, model: str, scheme: str) -> Agreement:
    """Compare the bundle of an ONNX file with onnxruntime on `inputs` [N, ...]."""
    bundle = file.with_suffix(".subbyte")
    subbyte.compile(file, bundle)
    onnx = load_onnx(file)
    changed, errors, largest = [], [], 0.0
    with subbyte.load(bundle, threads=1) as session:
        name = session.outputs[0].name
        for start in range(0, len(inputs), CHUNK):
            part = inputs[start : start + CHUNK]
            wanted = run_onnx(onnx, part)[name]
            got = np.concatenate([session.run(np.ascontiguousarray(one)) for one in np.split(part, len(part))])
            decided = [task.predictions(values, part.shape[1:]) for values in (wanted, got)]
            assert decided[0] is not None
            changed.append((decided[0] != decided[1]).reshape(len(part), -1))
            errors.append(np.abs(got - wanted).reshape(len(part), -1).max(1))
            largest = max(largest, float(np.abs(wanted).max()))
    differing, error = np.concatenate(changed), np.concatenate(errors)
    return Agreement(
        model=model,
        scheme=scheme,
        inputs=len(inputs),
        decisions=differing.size,
        changed_decisions=int(differing.sum()),
        changed_inputs=int(differing.any(1).sum()),
        changed_last=int(differing[:, -1].sum()),
        largest=largest,
        max_error=float(error.max()),
        inputs_apart=int((error > 1e-5 * largest).sum()),
    )


def of_checkpoint(folder: Path, limit: int, made: Path) -> Agreement:
    """A trained model on the first `limit` test inputs of its data."""
    loaded = load_checkpoint(folder)
    config = loaded.config
    data = load_data(config.data, config.training.get("data_path"), **config.training.get("data_options", {}))
    export(loaded, made / "m.onnx")
    task = get_task(config.task, **config.task_options)
    return agreement(made / "m.onnx", data.test_arrays(limit)[0], task, folder.name, config.scheme)


def of_untrained(scheme: str, limit: int, made: Path) -> Agreement:
    """A decoder of random weights on random tokens."""
    model, tokens = untrained("decoder", scheme, size=CONTEXT, classes=VOCABULARY)
    export(model, made / "m.onnx", example=tokens)
    (inputs,) = example_inputs(load_onnx(made / "m.onnx"), samples=limit).values()
    return agreement(made / "m.onnx", inputs, get_task("language-modelling"), "decoder, untrained", scheme)


def found(folders: list[Path], limit: int) -> Iterator[Agreement]:
    """An agreement for each checkpoint, or for each scheme of UNTRAINED where there is none."""
    for one in folders or UNTRAINED:
        with tempfile.TemporaryDirectory(prefix="subbyte-") as made:
            make = of_checkpoint if isinstance(one, Path) else of_untrained
            yield make(one, limit, Path(made))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD)
    rows = []
    for row in found(arguments.checkpoints, arguments.inputs):
        print(row, flush=True)
        rows.append(asdict(row))
    if arguments.json:
        write_file(arguments.json, json.dumps({"rows": rows, "machine": measured_on()}, indent=1).encode())


if __name__ == "__main__":
    main()
