"""A kernel's function while its TIR is being built, and its buffer parameters in order.

with prim_func("plain") as signature:
    x = signature.input(OWN_INPUTS[0], (rows, columns), "float32")
    ...                                                             # TIR
return signature.built()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.registry import Built, Constant, Input, Output, Parameter, Workspace
from subbyte.tvm_kernels.memory import ALIGNMENT


class Signature:
    """Declares buffer parameters and records what each is bound to."""

    def __init__(self, builder: IRBuilder) -> None:
        self._builder = builder
        self._parameters: list[Parameter] = []

    def built(self) -> Built:
        """The kernel, once its function is complete."""
        return Built(self._builder.get(), tuple(self._parameters))

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


@contextmanager
def prim_func(name: str, attributes: Mapping[str, int] | None = None) -> Iterator[Signature]:
    """The frame of a function whose parameters do not overlap, of that name in TIR and with further attributes."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, **(attributes or {})})
        yield Signature(builder)


def view(buffer: Any, shape: Sequence[int], dtype: str, byte_offset: int = 0) -> Any:
    """The memory of `buffer` from `byte_offset` on, as a buffer of another shape and dtype."""
    bits = 8 * np.dtype(dtype).itemsize
    return T.decl_buffer(tuple(shape), dtype, data=buffer.data, elem_offset=byte_offset * 8 // bits, align=bits // 8)
