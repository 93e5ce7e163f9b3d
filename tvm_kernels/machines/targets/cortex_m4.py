"""Cortex-M4F: a microcontroller with two 16-bit products an instruction and a unit for single floats."""

from subbyte.tvm_kernels.emit.c_source import C_SOURCE
from subbyte.tvm_kernels.machines.arm_m import THUMBV7EM
from subbyte.tvm_kernels.machines.boards.mps2_an386 import MPS2_AN386
from subbyte.tvm_kernels.machines.register import register_target
from subbyte.tvm_kernels.machines.target import Target

register_target(
    Target(
        name="cortex-m4",
        architecture=THUMBV7EM,
        system="none-eabihf",
        emitter=C_SOURCE,
        features=frozenset({"dsp"}),
        summary="C sources for Arm Cortex-M4F and anything else with a C99 compiler: no heap, no threads",
        run_by=MPS2_AN386,
        cpu="cortex-m4",
    )
)
