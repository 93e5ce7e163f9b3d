"""x86-64-v4 of the x86-64 ABI: AVX-512."""

from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.machines.register import register_target
from subbyte.tvm_kernels.machines.running import Native
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.machines.x86 import V4, X86_64

register_target(
    Target(
        name="x86-64-v4",
        architecture=X86_64,
        system="linux-gnu",
        emitter=ELF,
        features=V4,
        summary="Linux on x86-64 with AVX-512 F, BW, CD, DQ, VL (Skylake-X, Zen 4, and later)",
        run_by=Native(),
        cpu="x86-64",
    )
)
