"""RV32I without M: no instruction multiplies. Products are shifts and additions, floats are software."""

from subbyte.tvm_kernels.machines.boards.riscv_virt import riscv_virt
from subbyte.tvm_kernels.targets import Target, register_target

register_target(
    Target(
        name="rv32i",
        triple="riscv32-none-elf",
        emitter="source",
        features=frozenset(),
        summary="C sources for RISC-V CPUs that cannot multiply (RV32I): products are shifts and additions",
        c_flags=("-march=rv32i", "-mabi=ilp32", "--specs=picolibc.specs"),
        compilers=("riscv64-unknown-elf-gcc",),
        install="apt install gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf",
        code_generator="c",
        board=riscv_virt(32, "rv32,m=false"),
    )
)
