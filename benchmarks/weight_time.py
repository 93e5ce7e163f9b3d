"""How long one large low-bit weight takes from its levels to a plan: 4096 x 11008 int4, before any code is generated.

    python benchmarks/weight_time.py [--only SUBSTRING ...] [--rounds 3] [--json weight_time.json]

Each case is one product of codes and the weight, made as an exporter makes it (`file`: levels to the packed bytes of an
ONNX model in memory) and lowered for a CPU (`plan`: the model to a plan, with packed constants and kernels in TIR).
Seconds are of CPU, the least of the rounds; `of the weight` is the plan's less that of a weight of 64 x 128, which has
the same passes and kernels. `peak` is the memory of a process that does one case.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from measured_on import measured_on
from onnx import helper, numpy_helper

from subbyte import formats
from subbyte.export.functions import append_functions
from subbyte.files.output import write_file
from subbyte.tvm_kernels.lowering import lower
from subbyte.tvm_kernels.machines import get_target

ROWS, DEPTH, GROUP = 4096, 11008, 128
SMALL_ROWS, SMALL_DEPTH = 64, 128
FLOAT = onnx.TensorProto.FLOAT
Nodes = list[onnx.NodeProto]
Constants = dict[str, np.ndarray]


def by_channel(levels: np.ndarray) -> tuple[Nodes, Constants]:
    """Decode<Format>, a Transpose and the product, as the exporter writes a Linear."""
    tensor = formats.LowBitTensor.from_levels(formats.get("int4"), levels, 1.0, formats.PerTensor())
    nodes = [
        helper.make_node("DecodeInt4", ["packed", "shape"], ["levels"], "decode", domain="subbyte"),
        helper.make_node("Transpose", ["levels"], ["w"], "transpose", perm=[1, 0]),
    ]
    return nodes, {"packed": tensor.packed, "shape": np.array(levels.shape, np.int64)}


def by_group(levels: np.ndarray) -> tuple[Nodes, Constants]:
    """Dequantize<Format> with groups of 128 along the depth."""
    shape = (levels.shape[0], levels.shape[1] // GROUP)
    scale = np.random.default_rng(1).uniform(0.01, 0.02, shape).astype(np.float32)
    tensor = formats.LowBitTensor.from_levels(formats.get("int4"), levels, scale, formats.PerGroup(GROUP))
    inputs = {"packed": tensor.packed, "shape": np.array(levels.shape, np.int64), "scale": scale}
    inputs["group_size"] = np.array(GROUP, np.int64)
    nodes = [
        helper.make_node("DequantizeInt4", list(inputs), ["values"], "dequantize", domain="subbyte"),
        helper.make_node("Transpose", ["values"], ["w"], "transpose", perm=[1, 0]),
    ]
    return nodes, inputs


def of_another_exporter(levels: np.ndarray) -> tuple[Nodes, Constants]:
    """DequantizeLinear of int8 that holds levels of 4 bits, [depth, rows] as MatMul reads it."""
    scale = np.full(levels.shape[0], 0.01, np.float32)
    nodes = [helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], "dequantize", axis=1)]
    return nodes, {"q": np.ascontiguousarray(levels.T).astype(np.int8), "scale": scale}


CASES: dict[str, tuple[Callable[[np.ndarray], tuple[Nodes, Constants]], str]] = {
    "by channel, x86-64-v3": (by_channel, "x86-64-v3"),
    "by channel, x86-64-v4": (by_channel, "x86-64-v4"),
    "by channel, cortex-a53": (by_channel, "cortex-a53"),
    "groups of 128, x86-64-v4": (by_group, "x86-64-v4"),
    "groups of 128, cortex-a53": (by_group, "cortex-a53"),
    "DequantizeLinear, x86-64-v4": (of_another_exporter, "x86-64-v4"),
}


def model_of(levels: np.ndarray, make: Callable[[np.ndarray], tuple[Nodes, Constants]]) -> onnx.ModelProto:
    """x, quantized, times the weight."""
    nodes, constants = make(levels)
    constants |= {"inverse_step": np.float32(20), "low": np.float32(-128), "high": np.float32(127)}
    quantizer = helper.make_node("Quantize", ["x", "inverse_step", "low", "high"], ["a"], "quantize", domain="subbyte")
    product = helper.make_node("MatMul", ["a", "w"], ["y"], "product")
    infos = [helper.make_tensor_value_info(n, FLOAT, [1, k]) for n, k in zip("xy", levels.shape[::-1], strict=True)]
    initializers = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    graph = helper.make_graph([quantizer, *nodes, product], "weight", infos[:1], infos[1:], initializers)
    opsets = [helper.make_opsetid("", 21)]
    return append_functions(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def seconds(case: str, rows: int, depth: int) -> tuple[float, float]:
    """Seconds of CPU to make the file, and from it the plan."""
    make, target = CASES[case]
    levels = np.random.default_rng(0).integers(-8, 8, (rows, depth), dtype=np.int8)
    features = get_target(target).features
    start = time.process_time()
    model = model_of(levels, make)
    made = time.process_time()
    lower(model, features)
    return made - start, time.process_time() - made


def child(case: str, rounds: int) -> None:
    """Measure one case and print JSON; the small weight first, so that everything is imported."""
    small = min(seconds(case, SMALL_ROWS, SMALL_DEPTH)[1] for _ in range(max(2, rounds)))
    large = [seconds(case, ROWS, DEPTH) for _ in range(rounds)]
    file, plan = (min(column) for column in zip(*large, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {"file_s": file, "plan_s": plan, "of_the_weight_s": plan - small, "peak_mib": peak}
    print(json.dumps({key: round(value, 3) for key, value in row.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="SUBSTRING")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.rounds)
        return
    rows = {}
    print(f"{'seconds of CPU':<32} {'file':>8} {'plan':>8} {'of the weight':>14} {'peak MiB':>9}")
    for case in CASES:
        if arguments.only and not any(part in case for part in arguments.only):
            continue
        command = [sys.executable, __file__, "--child", case, "--rounds", str(arguments.rounds)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = rows[case] = json.loads(output.splitlines()[-1])
        print(
            f"{case:<32} {row['file_s']:8.2f} {row['plan_s']:8.2f} {row['of_the_weight_s']:14.2f} "
            f"{row['peak_mib']:9.0f}",
            flush=True,
        )
    if arguments.json:
        saved = {"machine": measured_on(), "shape": [ROWS, DEPTH], "cases": rows}
        write_file(arguments.json, json.dumps(saved, indent=1).encode())


if __name__ == "__main__":
    main()
