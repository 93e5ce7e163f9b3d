"""Cortex-M3: a microcontroller that multiplies one pair of integers an instruction; floats are software."""

from subbyte.tvm_kernels.emit.c_source import C_SOURCE
from subbyte.tvm_kernels.machines.arm_m import THUMBV7M
from subbyte.tvm_kernels.machines.boards.mps2_an385 import MPS2_AN385
from subbyte.tvm_kernels.machines.register import register_target
from subbyte.tvm_kernels.machines.target import Target

register_target(
    Target(
        name="cortex-m3",
        architecture=THUMBV7M,
        system="none-eabi",
        emitter=C_SOURCE,
        features=frozenset(),
        summary="C sources for Arm Cortex-M3: no floating-point unit, no DSP instructions",
        run_by=MPS2_AN385,
        cpu="cortex-m3",
    )
)
