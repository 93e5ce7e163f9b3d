"""Cortex-A53: 64-bit Arm in order, of the Raspberry Pi 3."""

from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.machines.arm import AARCH64
from subbyte.tvm_kernels.machines.register import register_target
from subbyte.tvm_kernels.machines.running import QemuUser
from subbyte.tvm_kernels.machines.target import Target

register_target(
    Target(
        name="cortex-a53",
        architecture=AARCH64,
        system="linux-gnu",
        emitter=ELF,
        features=frozenset({"neon"}),
        summary="Linux on 64-bit Arm (Raspberry Pi 3 and later)",
        run_by=QemuUser("cortex-a53"),
        cpu="cortex-a53",
    )
)
