"""The kernel rows: importing a module registers its rows."""

from subbyte.tvm_kernels.kernels import batch_matmul as batch_matmul
from subbyte.tvm_kernels.kernels import binary as binary
from subbyte.tvm_kernels.kernels import bit_slice as bit_slice
from subbyte.tvm_kernels.kernels import check_indices as check_indices
from subbyte.tvm_kernels.kernels import depthwise as depthwise
from subbyte.tvm_kernels.kernels import dot as dot
from subbyte.tvm_kernels.kernels import dsp_depthwise as dsp_depthwise
from subbyte.tvm_kernels.kernels import dsp_product as dsp_product
from subbyte.tvm_kernels.kernels import elementwise as elementwise
from subbyte.tvm_kernels.kernels import float_product as float_product
from subbyte.tvm_kernels.kernels import layer_norm as layer_norm
from subbyte.tvm_kernels.kernels import permute as permute
from subbyte.tvm_kernels.kernels import pool as pool
from subbyte.tvm_kernels.kernels import portable as portable
from subbyte.tvm_kernels.kernels import quantize_tokens as quantize_tokens
from subbyte.tvm_kernels.kernels import run_time_product as run_time_product
from subbyte.tvm_kernels.kernels import softmax as softmax
from subbyte.tvm_kernels.kernels import unfold as unfold
