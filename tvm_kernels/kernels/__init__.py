"""The kernel rows: importing a module registers its rows."""

from subbyte.tvm_kernels.kernels import float_product as float_product
