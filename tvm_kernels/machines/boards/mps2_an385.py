"""Arm's MPS2 board with a Cortex-M3: no floating-point unit."""

from subbyte.tvm_kernels.machines.arm_m import THUMBV7M
from subbyte.tvm_kernels.machines.boards.mps2 import mps2

MPS2_AN385 = mps2("an385", runs=(THUMBV7M,), cpus=("cortex-m3",), features=frozenset())
