"""Arm's MPS2 board with a Cortex-M4F."""

from subbyte.tvm_kernels.machines.arm_m import THUMBV7EM, THUMBV7M
from subbyte.tvm_kernels.machines.boards.mps2 import mps2

MPS2_AN386 = mps2("an386", (THUMBV7EM, THUMBV7M), cpus=("cortex-m4", "cortex-m3"), features=frozenset({"dsp"}))
