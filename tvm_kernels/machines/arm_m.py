"""Arm microcontrollers (M profile): Thumb instructions, no operating system."""

from __future__ import annotations

from subbyte.tvm_kernels.machines.architecture import Architecture, Processor, Spelling, Tool, register_architecture

_GCC = Tool("arm-none-eabi-gcc", ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi"))


class ArmM(Architecture):
    """The CPU's name says which floating-point unit it has, the system of the triple whether floats pass through it."""

    def c_flags(self, target: Processor, spelled: Spelling) -> tuple[str, ...]:
        """zig writes names with underscores: cortex_m4."""
        cpu = target.cpu.replace("-", "_") if spelled == "zig" else target.cpu
        return (f"-mcpu={cpu}", "-mthumb", f"-mfloat-abi={'hard' if target.system.endswith('hf') else 'soft'}")


# Cortex-M3
THUMBV7M = register_architecture(ArmM("thumbv7m", {"none-eabi": _GCC}, needs_cpu=True))
# Cortex-M4, M7
THUMBV7EM = register_architecture(ArmM("thumbv7em", {"none-eabi": _GCC, "none-eabihf": _GCC}, needs_cpu=True))
