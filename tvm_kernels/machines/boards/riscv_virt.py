"""qemu's RISC-V board `virt`: a serial port, a device that ends the emulator, retired instructions as its clock."""

from subbyte.tvm_kernels.machines.architecture import Tool
from subbyte.tvm_kernels.machines.board import Board, Memory


def riscv_virt(bits: int, cpu: str) -> Board:
    """The board with a CPU of 32 or 64 bits, as qemu's `-cpu` names it."""
    machine = ("-M", "virt", "-cpu", cpu, "-bios", "none", "-nographic", "-icount", "shift=0")
    return Board(
        name=f"riscv{bits}-virt",
        files="riscv_virt",
        flash=Memory(0x80000000, 8 << 20),
        ram=Memory(0x80800000, 8 << 20),
        link_flags=("-nostartfiles",),
        emulator=Tool(f"qemu-system-riscv{bits}", ("qemu-system-misc",)),
        arguments=(*machine, "-kernel"),
        instructions_per_tick=1,
    )
