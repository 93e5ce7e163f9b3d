"""What TIR is built for: a code generator, and a CPU with or without a multiplier.

LLVM fuses a * b + c unless a fence intrinsic prevents it; C has none, and c_text.py keeps every float product unfused
instead. Code that chooses and builds kernels for the source emitter does:

    with code_generator("c", multiplies=target.multiplies):
        built = choose(op, target.features).kernel.build(op)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from tvm.script.ir_builder import tirx as T

Generator = Literal["llvm", "c"]

_current: ContextVar[Generator] = ContextVar("code_generator", default="llvm")
_multiplies: ContextVar[bool] = ContextVar("multiplies", default=True)


@contextmanager
def code_generator(name: Generator, multiplies: bool = True) -> Iterator[None]:
    """Kernels chosen and built inside this block are for that code generator and a CPU that does or does not multiply.

    Outside of any block they are for LLVM and a CPU with a multiplier.
    """
    token, other = _current.set(name), _multiplies.set(multiplies)
    try:
        yield
    finally:
        _current.reset(token)
        _multiplies.reset(other)


def current_code_generator() -> Generator:
    """The code generator that kernels are being built for."""
    return _current.get()


def cpu_multiplies() -> bool:
    """Whether the CPU that kernels are being built for has an instruction that multiplies integers."""
    return _multiplies.get()


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
