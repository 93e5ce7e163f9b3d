"""Time single kernels beside onnxruntime's float and int8 on the same layer, interleaved, on one pinned thread.

    python benchmarks/kernels.py [--only TEXT] [--seconds S] [--features avx2] [--json FILE]

Every round runs each engine, once to warm the caches and then TURN times, each timed, so that a change of clock or a
neighbour hits all alike; judge by the minimum. Our kernels end in scale, bias and requantization to codes, as
onnxruntime's QLinear operators do. Binary times include packing the float input into bits. On a CPU with AMX both use
it; `--features avx512vnni,avx512bw,avx512vpopcntdq` keeps ours to vectors.
"""

from __future__ import annotations

import os

os.environ.update(TVM_NUM_THREADS="1", OMP_NUM_THREADS="1")

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from subbyte.files.output import write_file
from subbyte.formats import LowBitTensor, PerChannel, PerGroup, get
from subbyte.onnx_files.onnxruntime import onnxruntime
from subbyte.runtime.benchmark import interleave
from subbyte.tvm_kernels.kernels.tir.execute import compile_kernel
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.operators import (
    Bias,
    Bits,
    Codes,
    Conv2d,
    Elementwise,
    Epilogue,
    MatMul,
    Product,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)

Run = Callable[[], object]
TURN = 10  # timed calls of an engine in a round
Geometry = MatMul | Conv2d
ORT = onnxruntime()


def square(size: int, channels: int, out_channels: int, kernel: int = 3, stride: int = 1, **more: Any) -> Conv2d:
    """A square convolution that keeps the size (divided by the stride)."""
    pad = kernel // 2
    return Conv2d(
        1, size, size, channels, out_channels, (kernel, kernel), (stride, stride), (pad, pad, pad, pad), **more
    )


LAYERS: dict[str, Geometry] = {
    "matmul 197x384x384": MatMul(197, 384, 384),
    "matmul 197x384x1536": MatMul(197, 384, 1536),
    "matmul 197x1536x384": MatMul(197, 1536, 384),
    "matmul 1x4096x4096": MatMul(1, 4096, 4096),
    "matmul 1x512x1000": MatMul(1, 512, 1000),
    "conv 3x3 14x14x256": square(14, 256, 256),
    "conv 3x3 7x7x512": square(7, 512, 512),
    "conv 3x3 28x28x128": square(28, 128, 128),
    "conv 3x3 56x56x64": square(56, 64, 64),
    "conv 3x3 28x28x16": square(28, 16, 16),
    "conv 3x3 14x14x32": square(14, 32, 32),
    "conv 3x3 7x7x64": square(7, 64, 64),
    "conv 3x3 28x28x16->32 /2": square(28, 16, 32, stride=2),
    "conv 1x1 56x56x64->128 /2": square(56, 64, 128, kernel=1, stride=2),
    "conv 7x7 224x224x3->64 /2": square(224, 3, 64, kernel=7, stride=2),
    "conv 3x3 28x28x1->16": square(28, 1, 16),
    "depthwise 3x3 28x28x128": square(28, 128, 128, groups=128),
}
FORMATS = ("int8", "int4", "int4/32", "ternary", "pow2_4", "binary")


def weight_shape(geometry: Geometry) -> tuple[int, ...]:
    if isinstance(geometry, MatMul):
        return (geometry.columns, geometry.depth)
    return (geometry.out_channels, *geometry.kernel, geometry.channels // geometry.groups)


def input_shape(geometry: Geometry) -> tuple[int, ...]:
    if isinstance(geometry, MatMul):
        return (geometry.rows, geometry.depth)
    return (geometry.batch, geometry.height, geometry.width, geometry.channels)


# ---- ours ----


def ours(geometry: Geometry, name: str, features: frozenset[str] | None) -> tuple[Run, str]:
    """A function that runs one kernel (for binary: packing and kernel), and the row's name."""
    rng = np.random.default_rng(0)
    name, _, group = name.partition("/")
    fmt = get(name)
    shape = weight_shape(geometry)
    granularity = PerGroup(int(group)) if group else PerChannel(0)
    scales = granularity.scale_shape((shape[0], int(np.prod(shape[1:]))))
    weight = LowBitTensor.from_levels(
        fmt, rng.choice(fmt.levels.values, shape), np.ones(scales, np.float32), granularity
    )
    scale, bias = rng.random((2, shape[0])).astype(np.float32)
    epilogue = Epilogue((Scale(scale), Bias(bias)), (ToCodes(1e-3, Codes(-128, 127, 128)),))
    where = input_shape(geometry)
    if name != "binary":
        op = Product("layer", Codes(-128, 127, 128), weight, geometry, epilogue)
        product = compile_kernel(op, features=features)
        arguments, _ = product.bind([rng.integers(0, 256, where).astype(np.uint8)])
        return lambda: product.call(arguments), product.name
    channels = where[-1]
    op = Product("layer", Bits(channels), weight, geometry, Epilogue(epilogue.steps, (ToFloat(),)))
    product = compile_kernel(op, features=features)
    signs = Epilogue((), (ToBits(constant(0.0), Bits(channels)),))
    packing = compile_kernel(Elementwise("pack", int(np.prod(where[:-1])), channels, signs), features=features)
    pack_arguments, (bits,) = packing.bind([rng.normal(size=where).astype(np.float32)])
    arguments, _ = product.bind([bits])

    def both() -> None:
        packing.call(pack_arguments)
        product.call(arguments)

    return both, product.name


# ---- onnxruntime ----


def _session(nodes: list[Any], inputs: list[Any], outputs: list[Any], tensors: dict[str, Any]) -> Any:
    initializers = [numpy_helper.from_array(np.asarray(value), key) for key, value in tensors.items()]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = ORT.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ORT.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _runner(session: Any, feed: np.ndarray) -> Run:
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ORT.OrtValue.ortvalue_from_numpy(feed))
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def _attributes(geometry: Conv2d) -> dict[str, Any]:
    return {
        "kernel_shape": list(geometry.kernel),
        "strides": list(geometry.stride),
        "pads": list(geometry.padding),
        "group": geometry.groups,
    }


def onnxruntime_layer(geometry: Geometry, quantized: bool) -> Run:
    """The layer in onnxruntime, NCHW, float32 or uint8 x int8 by channel."""
    rng = np.random.default_rng(0)
    shape, where = weight_shape(geometry), input_shape(geometry)
    convolution = isinstance(geometry, Conv2d)
    if isinstance(geometry, Conv2d):
        shape = (shape[0], shape[3], shape[1], shape[2])
        where = (where[0], where[3], where[1], where[2])
    else:
        shape = (shape[1], shape[0])
    attributes = _attributes(geometry) if isinstance(geometry, Conv2d) else {}
    kind = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", kind, where)]
    outputs = [helper.make_tensor_value_info("y", kind, ["?"] * len(where))]
    channels = geometry.out_channels if isinstance(geometry, Conv2d) else geometry.columns
    if quantized:
        tensors: dict[str, Any] = {
            "xs": np.float32(0.02),
            "xz": np.uint8(128),
            "w": rng.integers(-127, 128, shape).astype(np.int8),
            "ws": rng.random(channels).astype(np.float32),
            "wz": np.zeros(channels, np.int8),
            "ys": np.float32(10.0),
            "yz": np.uint8(128),
        }
        names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
        if convolution:
            tensors["b"] = np.zeros(channels, np.int32)
            names.append("b")
        node = helper.make_node("QLinearConv" if convolution else "QLinearMatMul", names, ["y"], **attributes)
        feed: Any = rng.integers(0, 256, where).astype(np.uint8)
        return _runner(_session([node], inputs, outputs, tensors), feed)
    tensors = {"w": rng.normal(size=shape).astype(np.float32), "b": np.zeros(channels, np.float32)}
    node = helper.make_node("Conv" if convolution else "Gemm", ["x", "w", "b"], ["y"], **attributes)
    return _runner(_session([node], inputs, outputs, tensors), rng.normal(size=where).astype(np.float32))


# ---- measuring ----


def measure(name: str, geometry: Geometry, formats: list[str], seconds: float, features: Any) -> list[dict[str, Any]]:
    """One row of the report for each engine and format of a layer."""
    runs: dict[str, Run] = {
        "onnxruntime float": onnxruntime_layer(geometry, False),
        "onnxruntime int8": onnxruntime_layer(geometry, True),
    }
    kernels = {}
    for fmt in formats:
        try:
            runs[fmt], kernels[fmt] = ours(geometry, fmt, features)
        except Exception as error:
            print(f"  {name} {fmt}: {error}")
    times = {engine: found * 1e6 for engine, found in interleave(runs, seconds, TURN).items()}
    base, eight = times["onnxruntime float"].min(), times["onnxruntime int8"].min()
    rows = []
    for engine, values in times.items():
        least = float(values.min())
        rows.append(
            {
                "layer": name,
                "engine": engine,
                "kernel": kernels.get(engine, ""),
                "min_us": least,
                "median_us": float(np.median(values)),
                "gop_s": 2 * geometry.macs / least / 1e3,
                "vs_float": float(base / least),
                "vs_int8": float(eight / least),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="layers, formats or 'dot' / 'binary' whose name contains this")
    parser.add_argument("--formats", default="", help="comma-separated, of: " + ", ".join(FORMATS))
    parser.add_argument("--seconds", type=float, default=0.2, help="for each engine and layer")
    parser.add_argument("--cpu", type=int, default=None, help="pin to this CPU (default: the last one allowed)")
    parser.add_argument("--features", default="", help="kernels for these CPU features only, e.g. avx2")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    cpu = max(os.sched_getaffinity(0)) if options.cpu is None else options.cpu
    os.sched_setaffinity(0, {cpu})
    features = frozenset(options.features.split(",")) if options.features else None
    formats = options.formats.split(",") if options.formats else list(FORMATS)
    if options.only in ("dot", "binary"):
        formats = [f for f in formats if (f == "binary") == (options.only == "binary")]
    layers = {n: g for n, g in LAYERS.items() if options.only in n} or LAYERS
    print(f"{'layer':28}{'engine':20}{'kernel':24}{'min us':>9}{'median':>9}{'GOP/s':>8}{'x float':>9}{'x int8':>8}")
    report: list[dict[str, Any]] = []
    for name, geometry in layers.items():
        for row in measure(name, geometry, formats, options.seconds, features):
            report.append(row)
            print(
                f"{row['layer']:28}{row['engine']:20}{row['kernel']:24}{row['min_us']:9.1f}{row['median_us']:9.1f}"
                f"{row['gop_s']:8.0f}{row['vs_float']:9.2f}{row['vs_int8']:8.2f}",
                flush=True,
            )
    if options.json:
        machine = {
            "cpu": platform.processor(),
            "features": sorted(host_features()),
            "onnxruntime": ORT.__version__,
        }
        write_file(options.json, json.dumps({"machine": machine, "pinned_cpu": cpu, "rows": report}, indent=1).encode())


if __name__ == "__main__":
    main()
