"""x86-64-v2 of the x86-64 ABI: SSE4.2."""

from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.machines.register import register_target
from subbyte.tvm_kernels.machines.running import QemuUser
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.machines.x86 import V2, X86_64

register_target(
    Target(
        name="x86-64-v2",
        architecture=X86_64,
        system="linux-gnu",
        emitter=ELF,
        features=V2,
        summary="Linux on x86-64 with SSE4.2 (Nehalem, Bulldozer, Atom, and later)",
        run_by=QemuUser("Nehalem"),
        cpu="x86-64",
    )
)
