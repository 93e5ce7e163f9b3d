"""The tiny model of tiny_model.c: its library, its bundle, and the NumPy arithmetic that it must equal."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from subbyte.tvm_kernels.emit.core import CORE, MEASURE, core_folder

HERE = Path(__file__).parent
SCALES = np.array([0.5, -0.25, 3.0], np.float32)


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def reference(x: np.ndarray) -> dict[str, np.ndarray]:
    """What tiny_model.c computes, every operator's result as ONNX would have it."""
    codes = np.clip(np.rint(x * np.float32(4)), -127, 127).astype(np.int32)
    signs = np.where(codes >= 0, 1, -1).astype(np.int32)
    y = codes.astype(np.float32) * SCALES[:, None, None]
    return {"codes": codes, "signs": signs, "y": y, "count": np.array([(signs == 1).sum()], np.int32)}


def example(seed: int = 0) -> np.ndarray:
    """An input of the tiny model."""
    return np.random.default_rng(seed).standard_normal((1, 3, 4, 4), np.float32) * 10


def weights() -> bytes:
    """weights.bin of the tiny model: the scales at byte 64 of 128."""
    return bytes(64) + SCALES.tobytes() + bytes(64 - SCALES.nbytes)


def operator(name: str, outputs: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """An operator's row of the manifest."""
    row = {
        "name": name,
        "kind": "Elementwise",
        "kernel": "portable",
        "tiles": 4,
        "activation": "float32",
        "weights": "-",
    }
    sizes = {"bits_per_weight": 0.0, "macs": 0, "weight_bytes": 0, "input_bytes": 192, "output_bytes": 48}
    return {**row, **sizes, "fallback": None, "outputs": outputs, **fields}


def output(tensor: str, **fields: Any) -> dict[str, Any]:
    """A traced result of the manifest: float32 [1, 3, 4, 4] in output 0 unless told."""
    row = {"tensor": tensor, "storage": "float", "dtype": "float32", "zero_point": 0, "shape": [1, 3, 4, 4]}
    return {**row, "layout": "as-is", "channels": 3, "space": "output", "offset": 0, "bytes": 192, **fields}


def tiny_manifest() -> dict[str, Any]:
    """The manifest of the tiny model, without members."""
    machine = os.uname().machine
    image = [1, 3, 4, 4]
    nhwc = {"shape": [1, 4, 4, 3], "layout": "NHWC", "space": "arena"}
    codes = output("codes", storage="codes", dtype="uint8", zero_point=128, offset=0, bytes=48, **nhwc)
    signs = output("signs", storage="bits", dtype="uint32", offset=64, bytes=64, **nhwc)
    total = output("count", dtype="int32", shape=[1], offset=1, bytes=4)
    return {
        "schema": 1,
        "name": "tiny",
        "versions": {"subbyte": "0.1.0"},
        "target": {"name": "host", "triple": f"{machine}-linux-gnu", "emitter": "library", "features": []},
        "source": {"scheme": "ternary", "model": "tiny"},
        "inputs": [{"name": "x", "dtype": "float32", "shape": image}],
        "outputs": [
            {"name": "y", "dtype": "float32", "shape": image},
            {"name": "count", "dtype": "int32", "shape": [1]},
        ],
        "arena_bytes": 128,
        "workspace_bytes": 64,
        "weights_bytes": 128,
        "operators": [
            operator("quantize", [codes]),
            operator("take_signs", [signs], activation="uint8", input_bytes=48, output_bytes=64),
            operator(
                "scale",
                [output("y")],
                kind="QuantizedProduct",
                activation="uint8",
                weights="ternary",
                bits_per_weight=2.0,
                macs=48,
                weight_bytes=12,
                input_bytes=48,
                output_bytes=192,
            ),
            operator("count", [total], tiles=1, input_bytes=64, output_bytes=4),
        ],
    }


def tiny_members(library: bytes) -> dict[str, bytes | Path]:
    """The members of the tiny bundle, golden outputs from the reference."""
    x = example(1)
    want = reference(x)
    return {
        "library.so": library,
        "weights.bin": weights(),
        "golden/input_0.npy": npy(x),
        "golden/output_0.npy": npy(want["y"]),
        "golden/output_1.npy": npy(want["count"]),
        "report.json": b"{}",
    }


def build_library(folder: Path, *options: str) -> bytes:
    """The tiny model as a shared library, made by the host's C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "the tests of the session need a C compiler"
    path = folder / "library.so"
    sources = [str(HERE / "tiny_model.c"), *(str(core_folder() / name) for name in (*CORE, *MEASURE))]
    flags = ["-std=gnu99", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fvisibility=hidden", f"-I{core_folder()}"]
    subprocess.run([compiler, *flags, *options, *sources, "-o", str(path), "-lpthread", "-lm"], check=True)
    return path.read_bytes()
