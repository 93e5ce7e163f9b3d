"""The buffer parameters of a kernel while its TIR is being built, in order. Use inside a `T.prim_func()` frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.registry import Constant, Input, Output, Parameter, Workspace
from subbyte.tvm_kernels.memory import ALIGNMENT


class Signature:
    """Declares buffer parameters and records what each is bound to; `parameters` goes into `Built`."""

    def __init__(self) -> None:
        self._parameters: list[Parameter] = []

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(self._parameters)

    def _declare(self, parameter: Parameter, shape: Sequence[int], dtype: str) -> Any:
        name = f"p{len(self._parameters)}"
        self._parameters.append(parameter)
        return T.arg(name, T.buffer(tuple(shape), dtype, align=ALIGNMENT))

    def input(self, tensor: str, shape: Sequence[int], dtype: str) -> Any:
        """A run-time tensor."""
        return self._declare(Input(tensor), shape, dtype)

    def constant(self, role: str, values: npt.NDArray[Any]) -> Any:
        """An array that is packed into weights.bin."""
        array = np.ascontiguousarray(values)
        return self._declare(Constant(role, array), array.shape, str(array.dtype))

    def output(self, index: int, shape: Sequence[int], dtype: str) -> Any:
        """The operator's output of that index."""
        return self._declare(Output(index), shape, dtype)

    def workspace(self, nbytes: int) -> Any:
        """Scratch of one thread, a uint8 buffer; see `view`."""
        return self._declare(Workspace(nbytes), (nbytes,), "uint8")


def view(buffer: Any, shape: Sequence[int], dtype: str, byte_offset: int = 0) -> Any:
    """The memory of `buffer` from `byte_offset` on, as a buffer of another shape and dtype."""
    bits = 8 * np.dtype(dtype).itemsize
    return T.decl_buffer(tuple(shape), dtype, data=buffer.data, elem_offset=byte_offset * 8 // bits, align=bits // 8)
