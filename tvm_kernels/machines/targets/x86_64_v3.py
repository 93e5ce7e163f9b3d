"""x86-64-v3 of the x86-64 ABI: AVX2 and FMA."""

from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.machines.register import register_target
from subbyte.tvm_kernels.machines.running import QemuUser
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.machines.x86 import V3, X86_64

register_target(
    Target(
        name="x86-64-v3",
        architecture=X86_64,
        system="linux-gnu",
        emitter=ELF,
        features=V3,
        summary="Linux on x86-64 with AVX2 and FMA (Haswell, Zen, and later)",
        run_by=QemuUser("Haswell"),
        cpu="x86-64",
    )
)
