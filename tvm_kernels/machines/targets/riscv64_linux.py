"""RV64GC: the instruction set of RISC-V that Linux distributions are compiled for."""

from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.machines.register import register_target
from subbyte.tvm_kernels.machines.riscv import RISCV64
from subbyte.tvm_kernels.machines.running import QemuUser
from subbyte.tvm_kernels.machines.target import Target

register_target(
    Target(
        name="riscv64-linux",
        architecture=RISCV64,
        system="linux-gnu",
        emitter=ELF,
        features=frozenset("imafdc"),
        summary="Linux on 64-bit RISC-V (RV64GC)",
        run_by=QemuUser("rv64"),
        cpu="generic-rv64",
    )
)
