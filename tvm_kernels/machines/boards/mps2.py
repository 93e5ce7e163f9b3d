"""Arm's MPS2 board: 4 MB for code and constants, 4 MB of RAM; semihosting, a timer of 25 MHz."""

from subbyte.tvm_kernels.machines.architecture import Architecture, Tool
from subbyte.tvm_kernels.machines.board import Board, Memory


def mps2(image: str, runs: tuple[Architecture, ...], cpus: tuple[str, ...], features: frozenset[str]) -> Board:
    """The board with the CPU of an image of its FPGA, which Arm's application notes number."""
    return Board(
        name=f"mps2-{image}",
        runs=runs,
        cpus=cpus,
        features=features,
        files="mps2",
        flash=Memory(0x00000000, 4 << 20),
        ram=Memory(0x20000000, 4 << 20),
        stack=4096,
        link_flags=("--specs=nosys.specs", "-nostartfiles"),
        # An instruction takes 1 ns of virtual time: a tick is 40.
        emulator=Tool("qemu-system-arm", ("qemu-system-arm",)),
        arguments=("-M", f"mps2-{image}", "-nographic", "-semihosting", "-icount", "shift=0", "-kernel"),
        instructions_per_tick=40,
    )
