"""The code generator that TIR is built for. LLVM fuses a * b + c unless a fence intrinsic prevents it; C has none.

In C sources c_text.py keeps every float product unfused instead. Code that builds kernels for the source emitter does:

    with code_generator("c"):
        built = row.build(op)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from tvm.script.ir_builder import tirx as T

Generator = Literal["llvm", "c"]

_current: ContextVar[Generator] = ContextVar("code_generator", default="llvm")


@contextmanager
def code_generator(name: Generator) -> Iterator[None]:
    """Kernels built inside this block are for that code generator; outside of any block, for LLVM."""
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def current_code_generator() -> Generator:
    """The code generator that kernels are being built for."""
    return _current.get()


def opaque(value: Any) -> Any:
    """The same float32, opaque to the compiler's simplifier: no operation that rounds is folded away."""
    if _current.get() == "c":
        return T.call_pure_extern("float32", "subbyte_opaque", value)
    return T.call_llvm_pure_intrin(value.ty, "llvm.arithmetic.fence", value)


def unfused(product: Any) -> Any:
    """A float32 product (scalar or vector) that no later addition is fused with."""
    if _current.get() == "c":
        return product
    return opaque(product)
