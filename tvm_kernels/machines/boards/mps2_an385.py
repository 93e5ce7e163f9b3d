"""Arm's MPS2 board with a Cortex-M3: as mps2_an386, without a floating-point unit."""

from dataclasses import replace

from subbyte.tvm_kernels.machines.boards.mps2_an386 import MPS2_AN386

MPS2_AN385 = replace(
    MPS2_AN386,
    name="mps2-an385",
    arguments=("-M", "mps2-an385", *MPS2_AN386.arguments[2:]),
)
