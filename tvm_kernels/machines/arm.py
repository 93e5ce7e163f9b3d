"""64-bit Arm with an operating system (A profile)."""

from __future__ import annotations

from subbyte.tvm_kernels.machines.architecture import Architecture, Processor, Spelling, Tool, register_architecture


class Arm(Architecture):
    """Compilers know its CPUs by name."""

    def c_flags(self, target: Processor, spelled: Spelling) -> tuple[str, ...]:
        """zig writes names with underscores: cortex_a53."""
        if target.cpu in ("", "generic"):
            return ()
        return (f"-mcpu={target.cpu.replace('-', '_') if spelled == 'zig' else target.cpu}",)


AARCH64 = register_architecture(
    Arm(
        machine="aarch64",
        compilers={"linux-gnu": Tool("aarch64-linux-gnu-gcc", ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"))},
        emulator=Tool("qemu-aarch64", ("qemu-user",)),
        glibc_floor=(2, 17),  # manylinux2014's
    )
)
