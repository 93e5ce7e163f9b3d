"""Run one kernel in this process on NumPy arrays, on one thread, without a library or a plan: for tests, benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm.s_tir  # registers the default pipeline

from subbyte.errors import CompileError
from subbyte.tvm_kernels.abi import on_one_thread
from subbyte.tvm_kernels.kernels.registry import (
    OWN_INPUTS,
    Built,
    Constant,
    Input,
    KernelRow,
    Output,
    Workspace,
    choose,
)
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.memory import ALIGNMENT

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array] | Sequence[Array]
# Features that every CPU with the first one has: kernel rows list the first alone.
_IMPLIED = {
    "avx512bw": {"avx", "avx2", "fma", "avx512f", "avx512vl", "avx512dq", "popcnt"},
    "avx2": {"avx", "fma", "popcnt"},
}


def host_target(features: frozenset[str] | None = None) -> Any:
    """A TVM target for this machine with these features and those they imply (None: all features of the CPU)."""
    host = get_target("host")
    if features is None:
        return host.tvm_target()
    implied = frozenset().union(*(more for name, more in _IMPLIED.items() if name in features))
    return replace(host, features=features | implied).tvm_target()


def aligned(shape: Sequence[int], dtype: Any) -> Array:
    """A zeroed array aligned as the runtime aligns its buffers."""
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    array: Array = raw[start : start + nbytes].view(dtype).reshape(shape)
    return array


def _aligned_copy(values: Array) -> Array:
    copy = aligned(values.shape, values.dtype)
    copy[...] = values
    return copy


class Executable:
    """A kernel compiled for this machine, with its constants."""

    def __init__(self, built: Built, target: Any = None, name: str = "kernel") -> None:
        self.name = name
        function = on_one_thread(built.function).with_attr("global_symbol", "kernel")
        self.module = tvm.tirx.build(tvm.IRModule({"kernel": function}), target=target or host_target())
        self._function = self.module["kernel"]
        self._parameters = built.parameters
        self._buffers = list(function.params)
        self._constants = {
            i: _aligned_copy(p.values) for i, p in enumerate(built.parameters) if isinstance(p, Constant)
        }

    def bind(self, inputs: Inputs) -> tuple[list[Any], list[Array]]:
        """Arguments for `call`, and the output arrays among them; raises CompileError for an input that is wrong."""
        named = dict(inputs) if isinstance(inputs, Mapping) else self._name(inputs)
        arguments: list[Array] = []
        outputs: dict[int, Array] = {}
        for i, parameter in enumerate(self._parameters):
            shape = [int(n) for n in self._buffers[i].shape]
            dtype = str(self._buffers[i].dtype)
            if isinstance(parameter, Constant):
                arguments.append(self._constants[i])
            elif isinstance(parameter, Input):
                array = np.asarray(named[parameter.tensor])
                if str(array.dtype) != dtype or array.size != int(np.prod(shape)):
                    raise CompileError(
                        f"input {parameter.tensor} is {array.dtype} {array.shape}, the kernel expects {dtype} {shape}"
                    )
                arguments.append(_aligned_copy(array.reshape(shape)))
            elif isinstance(parameter, Output):
                outputs[parameter.index] = aligned(shape, dtype)
                arguments.append(outputs[parameter.index])
            else:
                assert isinstance(parameter, Workspace)
                arguments.append(aligned((parameter.nbytes,), np.uint8))
        tensors = [tvm.runtime.from_dlpack(a) if a.size else tvm.runtime.tensor(a) for a in arguments]
        return tensors, [outputs[i] for i in sorted(outputs)]

    def _name(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Inputs in order: the operator's own, then those of its epilogue in order of appearance."""
        names = [p.tensor for p in self._parameters if isinstance(p, Input)]
        own = [name for name in OWN_INPUTS if name in names]
        rest = list(dict.fromkeys(name for name in names if name not in OWN_INPUTS))
        return dict(zip([*own, *rest], inputs, strict=True))

    def call(self, arguments: list[Any]) -> None:
        """Run on the arguments that `bind` returned."""
        self._function(*arguments)

    def __call__(self, inputs: Inputs) -> list[Array]:
        arguments, outputs = self.bind(inputs)
        self.call(arguments)
        return outputs


def compile_kernel(op: Any, row: KernelRow | None = None, features: frozenset[str] | None = None) -> Executable:
    """Build `row` (the best one for `features` if None) for `op` and compile it for this machine."""
    wanted = host_features() if features is None else features
    chosen = row or choose(op, wanted).kernel
    reason = chosen.refuses(op)
    if reason is not None:
        raise CompileError(f"{chosen.name} does not support '{op.name}': {reason}")
    return Executable(chosen.build(op), host_target(features), chosen.name)


def run(op: Any, inputs: Inputs, row: KernelRow | None = None, features: frozenset[str] | None = None) -> list[Array]:
    """The outputs of one operator, computed by one kernel row on this machine."""
    return compile_kernel(op, row, features)(inputs)
