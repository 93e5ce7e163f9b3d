"""RV32I without M: no instruction multiplies. Products are shifts and additions, floats are software."""

from subbyte.tvm_kernels.emit.c_source import C_SOURCE
from subbyte.tvm_kernels.machines.boards.riscv_virt import riscv_virt
from subbyte.tvm_kernels.machines.register import register_target
from subbyte.tvm_kernels.machines.riscv import RISCV32
from subbyte.tvm_kernels.machines.target import Target

register_target(
    Target(
        name="rv32i",
        architecture=RISCV32,
        system="none-elf",
        emitter=C_SOURCE,
        features=frozenset(),
        summary="C sources for RISC-V CPUs that cannot multiply (RV32I): products are shifts and additions",
        run_by=riscv_virt(RISCV32, "rv32,m=false", frozenset()),
    )
)
