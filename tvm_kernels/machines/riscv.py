"""RISC-V: the CPU is the letters of its extensions, of which M multiplies."""

from __future__ import annotations

from typing import Any

from subbyte.tvm_kernels.machines.architecture import Architecture, Processor, Spelling, Tool, register_architecture

LETTERS = "imafdcv"  # in the order that compilers want; longer names follow, each after an underscore


class RiscV(Architecture):
    """The instruction set and the ABI follow from the features."""

    def c_flags(self, target: Processor, spelled: Spelling) -> tuple[str, ...]:
        """zig takes a CPU with its features, gcc a name of the instruction set: rv64imafdc_zba."""
        letters = [letter for letter in LETTERS if letter in target.features | {"i"}]
        longer = sorted(target.features - set(LETTERS))
        if spelled == "zig":
            cpu = "+".join([f"generic_rv{self.bits}", *letters[1:], *longer])
            return (f"-mcpu={cpu}", f"-mabi={self.abi(target)}")
        isa = "_".join([f"rv{self.bits}{''.join(letters)}", *longer])
        libc = ("--specs=picolibc.specs",) if target.system == "none-elf" else ()
        return (f"-march={isa}", f"-mabi={self.abi(target)}", *libc)

    def llvm_options(self, target: Processor) -> dict[str, Any]:
        """LLVM needs the ABI by name, else floats do not pass in registers."""
        return {"mabi": self.abi(target)}

    @property
    def bits(self) -> str:
        """Of a register: 32 or 64."""
        return self.machine.removeprefix("riscv")

    def abi(self, target: Processor) -> str:
        """How integers and floats are passed: lp64d, ilp32, ..."""
        integers = "lp64" if self.bits == "64" else "ilp32"
        return integers + ("d" if "d" in target.features else "f" if "f" in target.features else "")


_BARE = Tool("riscv64-unknown-elf-gcc", ("gcc-riscv64-unknown-elf", "picolibc-riscv64-unknown-elf"))

RISCV32 = register_architecture(RiscV("riscv32", {"none-elf": _BARE}, multiplier="m"))
RISCV64 = register_architecture(
    RiscV(
        machine="riscv64",
        compilers={"linux-gnu": Tool("riscv64-linux-gnu-gcc", ("gcc-riscv64-linux-gnu", "libc6-dev-riscv64-cross"))},
        emulator=Tool("qemu-riscv64", ("qemu-user",)),
        glibc_floor=(2, 27),  # the first for RISC-V
        multiplier="m",
        any_cpu="generic-rv64",
    )
)
