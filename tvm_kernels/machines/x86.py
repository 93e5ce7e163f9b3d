"""x86-64: the levels of its ABI as far as kernels and LLVM use their features."""

from __future__ import annotations

from typing import Any

from subbyte.tvm_kernels.machines.architecture import Architecture, Processor, Tool, register_architecture

V2 = frozenset({"ssse3", "sse41", "sse42", "popcnt"})
V3 = V2 | {"avx", "f16c", "avx2", "fma", "bmi1", "bmi2", "abm", "movbe"}
V4 = V3 | {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


class X86(Architecture):
    """The C core is compiled for any x86-64."""

    def llvm_options(self, target: Processor) -> dict[str, Any]:
        """With AVX-512, vectors of 512 bits."""
        return {"mattr": ["-prefer-256-bit"]} if "avx512f" in target.features else {}


X86_64 = register_architecture(
    X86(
        machine="x86_64",
        compilers={"linux-gnu": Tool("x86_64-linux-gnu-gcc", ("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"))},
        emulator=Tool("qemu-x86_64", ("qemu-user",)),
        glibc_floor=(2, 17),  # manylinux2014's
        any_cpu="x86-64",
    )
)
