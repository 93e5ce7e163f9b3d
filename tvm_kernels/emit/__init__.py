"""From a plan to files: `compile_plan` gives the members of a bundle for a target's emitter."""

from subbyte.tvm_kernels.emit.emitted import Emitted, Golden
from subbyte.tvm_kernels.emit.members import compile_plan

__all__ = ["Emitted", "Golden", "compile_plan"]
