"""Arm's MPS2 board with a Cortex-M4F: 4 MB for code and constants, 4 MB of RAM; semihosting, a timer of 25 MHz."""

from subbyte.tvm_kernels.machines.architecture import Tool
from subbyte.tvm_kernels.machines.board import Board, Memory

MPS2_AN386 = Board(
    name="mps2-an386",
    files="mps2",
    flash=Memory(0x00000000, 4 << 20),
    ram=Memory(0x20000000, 4 << 20),
    link_flags=("--specs=nosys.specs", "-nostartfiles"),
    # An instruction takes 1 ns of virtual time: a tick is 40.
    emulator=Tool("qemu-system-arm", ("qemu-system-arm",)),
    arguments=("-M", "mps2-an386", "-nographic", "-semihosting", "-icount", "shift=0", "-kernel"),
    instructions_per_tick=40,
)
