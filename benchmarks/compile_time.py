"""How long `compile` takes for graphs that are long or wide and for models of the zoo, and in how much memory.

    python benchmarks/compile_time.py [--only SUBSTRING ...] [--json compile_time.json]

Each graph is made and compiled in a process of its own, without the replay, whose own clock and CPU time (children
included) are printed, and its largest resident set; what is refused shows its error. Nothing is added to the measured
process but the import. The models are untrained, with ternary weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from measured_on import measured_on
from onnx import helper, numpy_helper

import subbyte
from subbyte.files.output import write_file

FLOAT = onnx.TensorProto.FLOAT
Nodes = list[onnx.NodeProto]


def in_a_row(count: int, operators: Sequence[str]) -> onnx.ModelProto:
    """Elementwise nodes, each of the one before; Add and Mul have a constant vector."""
    names = ["x", *(f"t{i}" for i in range(1, count)), "y"]
    nodes = []
    for index in range(count):
        operator = operators[index % len(operators)]
        inputs = [names[index], *(["c"] if operator in ("Add", "Mul") else [])]
        nodes.append(helper.make_node(operator, inputs, [names[index + 1]], f"n{index}"))
    vector = numpy_helper.from_array(np.linspace(-1, 1, 64, dtype=np.float32), "c")
    return _model(nodes, [vector], (1, 64), (1, 64))


def side_by_side(count: int) -> onnx.ModelProto:
    """A Relu for each input of one Concat."""
    nodes = [helper.make_node("Relu", ["x"], [f"r{i}"], f"r{i}") for i in range(count)]
    nodes.append(helper.make_node("Concat", [f"r{i}" for i in range(count)], ["y"], "concat", axis=1))
    return _model(nodes, [], (1, 64), (1, 64 * count))


def constant_product(size: int, dtype: type) -> onnx.ModelProto:
    """x times the square of a constant matrix."""
    matrix = np.random.default_rng(0).integers(-3, 4, (size, size)).astype(dtype)
    operator = "MatMul" if dtype is np.float32 else "MatMulInteger"
    nodes = [
        helper.make_node(operator, ["a", "a"], ["i"], "square"),
        helper.make_node("Cast", ["i"], ["w"], "cast", to=FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    return _model(nodes, [numpy_helper.from_array(matrix, "a")], (1, size), (1, size))


def _model(nodes: Nodes, constants: Sequence[onnx.TensorProto], x: Sequence[int], y: Sequence[int]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("x", x), ("y", y))]
    graph = helper.make_graph(nodes, "graph", infos[:1], infos[1:], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def of_the_zoo(name: str) -> onnx.ModelProto:
    """A model of 1,000 classes, untrained, with ternary weights."""
    from subbyte.models import untrained

    model, examples = untrained(name, "ternary", classes=1000, channels=3, size=224, batch=2)
    with tempfile.TemporaryDirectory(prefix="subbyte-") as folder:
        subbyte.export(model, Path(folder) / "model.onnx", example=examples)
        return onnx.load(Path(folder) / "model.onnx")


CASES: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"Add in a row, {n:,}": lambda n=n: in_a_row(n, ["Add"]) for n in (2_000, 20_000)},  # type: ignore[misc]
    **{
        f"Relu, Neg, Abs, Sigmoid in a row, {n:,}": lambda n=n: in_a_row(n, ["Relu", "Neg", "Abs", "Sigmoid"])  # type: ignore[misc]
        for n in (2_000, 20_000)
    },
    **{f"Concat of {n:,}": lambda n=n: side_by_side(n) for n in (100, 1_000)},  # type: ignore[misc]
    "float32 constants, 6000 x 6000": lambda: constant_product(6000, np.float32),
    "int8 constants, 6000 x 6000": lambda: constant_product(6000, np.int8),
    **{f"{name}, ternary": lambda name=name: of_the_zoo(name) for name in ("resnet18", "deit_tiny")},  # type: ignore[misc]
}
CHILD = """
import subbyte
subbyte.compile
import subbyte.tvm_kernels.lowering, subbyte.tvm_kernels.relax_import, sys, json, os, time
wall, cpu = time.perf_counter(), sum(os.times()[:4])
error = ""
try:
    subbyte.compile(sys.argv[1], sys.argv[2], replay=False)
except subbyte.errors.SubbyteError as raised:
    error = str(raised)
wall, cpu = time.perf_counter() - wall, sum(os.times()[:4]) - cpu
with open("/proc/self/status") as status:  # ru_maxrss would start with what the parent has
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "peak_mib": peak, "error": error}))
"""


def measure(model: onnx.ModelProto, folder: Path) -> dict[str, Any]:
    """Seconds, seconds of CPU, MiB and the error that it ended in, of one compilation."""
    onnx.save(model, folder / "model.onnx")
    command = [sys.executable, "-c", CHILD, "model.onnx", "model.subbyte"]
    output = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="SUBSTRING")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = {}
    for name, make in CASES.items():
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        with tempfile.TemporaryDirectory(prefix="subbyte-") as folder:
            row = rows[name] = {**measure(make(), Path(folder)), "load": os.getloadavg()[0]}
        print(
            f"{name:<45} {row['seconds']:8.1f} s {row['cpu_seconds']:8.1f} s of CPU {row['peak_mib']:8.0f} MiB  "
            f"{row['error'][:100]}",
            flush=True,
        )
    if arguments.json:
        saved = {"machine": measured_on(), "cases": rows}
        write_file(arguments.json, json.dumps(saved, indent=1).encode())


if __name__ == "__main__":
    main()
