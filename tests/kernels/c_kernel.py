"""Run a kernel's generated C: compiled by the system's C compiler without contraction, called through ctypes."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.tvm_kernels.abi import Wanted, compile_source
from subbyte.tvm_kernels.emit.source_files import C_FLAGS
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.kernels.registry import Constant, Input, KernelRow, Output
from subbyte.tvm_kernels.kernels.tir.execute import aligned

Array = npt.NDArray[Any]
FLAGS = [*C_FLAGS, "-Wall", "-Werror", "-Wno-unused", "-fPIC", "-shared"]


def run_c(op: Any, row: KernelRow, inputs: Mapping[str, Array], folder: Path) -> list[Array]:
    """The outputs of `op` by `row` as C, tile by tile on one workspace that holds rubbish at first."""
    import tvm

    with code_generator("c"):
        built = row.build(op)
    made = compile_source([Wanted("kernel", built.function)], tvm.target.Target({"kind": "c"}))
    source, library = folder / "kernel.c", folder / "kernel.so"
    source.write_bytes(made.code)
    subprocess.run(["gcc", *FLAGS, str(source), "-o", str(library), "-lm"], check=True)
    function = ctypes.CDLL(str(library)).kernel
    arguments: list[Array] = []
    outputs: dict[int, Array] = {}
    for parameter, buffer in zip(built.parameters, built.function.params, strict=True):
        shape = [int(n) for n in buffer.shape]
        array = aligned(shape, str(buffer.dtype))
        if isinstance(parameter, Constant):
            array[...] = parameter.values
        elif isinstance(parameter, Input):
            array[...] = inputs[parameter.tensor].reshape(shape)
        else:
            array.view(np.uint8)[...] = 0xA5
        if isinstance(parameter, Output):
            outputs[parameter.index] = array
        arguments.append(array)
    (signature,) = made.signatures
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arguments]
    scratch = [aligned((nbytes,), np.uint8) for _, nbytes in signature.scratch]
    pointers += [ctypes.c_void_p(array.ctypes.data) for array in scratch]
    for tile in range(signature.tiles):
        assert function(*pointers, ctypes.c_int32(tile), ctypes.c_int32(tile + 1)) == 0
    return [outputs[index] for index in sorted(outputs)]
