"""qemu's RISC-V board `virt`: a serial port, a device that ends the emulator, retired instructions as its clock."""

from subbyte.tvm_kernels.machines.architecture import Tool
from subbyte.tvm_kernels.machines.board import Board, Memory
from subbyte.tvm_kernels.machines.riscv import RiscV


def riscv_virt(architecture: RiscV, cpu: str, features: frozenset[str]) -> Board:
    """The board with a CPU as qemu's `-cpu` names it; `features`: those that programs for it may use."""
    bits = architecture.bits
    machine = ("-M", "virt", "-cpu", cpu, "-bios", "none", "-nographic", "-icount", "shift=0")
    return Board(
        name=f"riscv{bits}-virt",
        runs=(architecture,),
        cpus=(),
        features=features,
        files="riscv_virt",
        flash=Memory(0x80000000, 8 << 20),
        ram=Memory(0x80800000, 8 << 20),
        stack=4096,
        link_flags=("-nostartfiles",),
        emulator=Tool(f"qemu-system-riscv{bits}", ("qemu-system-misc",)),
        arguments=(*machine, "-kernel"),
        instructions_per_tick=1,
    )
