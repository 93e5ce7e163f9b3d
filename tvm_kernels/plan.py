"""The plan: a sequence of kernel calls over tensors with fixed offsets. Lowering creates it, an emitter writes it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from subbyte.runtime.manifest import OperatorCall, OperatorFacts

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from subbyte.tvm_kernels.explanation import Explanation

Space = Literal["arena", "weights", "input", "output", "workspace", "state"]


@dataclass(frozen=True)
class MemorySpace:
    """Memory that tensors of a plan are in."""

    holds: str
    by_index: bool = False  # a place is the index of a tensor, which is a buffer of its own; else an offset in bytes
    device: Literal["host"] = "host"  # whose memory it is; a target with memory of its own has further entries


# In the order of SUBBYTE_ARENA .. of runtime/c/subbyte.h.
SPACES: dict[Space, MemorySpace] = {
    "arena": MemorySpace("intermediate tensors of one run"),
    "weights": MemorySpace("constants, and the initial values of states"),
    "input": MemorySpace("the caller's inputs", by_index=True),
    "output": MemorySpace("the caller's outputs", by_index=True),
    "workspace": MemorySpace("scratch of one thread within a kernel"),
    "state": MemorySpace("values that live between runs: kernels read them, a run that ends well replaces them"),
}


@dataclass(frozen=True)
class Argument:
    """The location of a kernel argument in a space of SPACES: a byte offset, or the index of an input or output."""

    space: Space
    offset: int


@dataclass(frozen=True)
class Tensor:
    """A model input or output, or an intermediate tensor that can be traced while the model runs."""

    name: str  # of the ONNX value
    dtype: str
    shape: tuple[int, ...]
    storage: Literal["float", "codes", "bits"] = "float"
    zero_point: int = 0
    channels: int = 0  # of the last axis, for bits
    layout: Literal["as-is", "NHWC"] = "as-is"  # NHWC: the ONNX value is NCHW
    place: Argument = Argument("arena", 0)
    nbytes: int = 0
    value: str = ""  # of the lowered graph, where one ONNX value has several values for several layouts


@dataclass(frozen=True)
class StateTensor:
    """A value that lives between runs: an input of the ONNX file that is replaced by an output of it."""

    tensor: Tensor  # named after the input; its place is in the state
    output: str  # the name of the output
    next: Argument  # where a run leaves the next value, in the arena
    initial: int | None  # offset of the initial value in the weights; None: zeros


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelCall(OperatorCall):
    """One operator of the plan, and the call that computes it."""

    function: PrimFunc
    arguments: tuple[Argument, ...]  # one for each buffer parameter of the function
    outputs: tuple[Tensor, ...]
    passed_over: tuple[tuple[str, str], ...] = ()  # better kernel rows, or rules, and why not
    needs: frozenset[str] = frozenset()  # CPU features that the kernel row asks for

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of the operator by the names of OperatorFacts, as Python's own types: JSON has none of NumPy's."""
        known = {part.name: getattr(self, part.name) for part in fields(OperatorFacts)}
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in known.items()}


@dataclass(frozen=True, eq=False)
class Plan:
    """A compiled model before code generation."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    calls: tuple[KernelCall, ...]
    weights: bytes = field(repr=False, default=b"")
    arena_bytes: int = 0
    workspace_bytes: int = 0
    states: tuple[StateTensor, ...] = ()
    state_bytes: int = 0  # with STATE_WORD; 0 without states
    source: dict[str, Any] = field(default_factory=dict)  # metadata of the ONNX file
    notes: tuple[str, ...] = ()  # for the report, on the file as a whole
    explanation: Explanation | None = None  # where one was asked for
