"""Converters to Relax for operators that TVM's own importer lacks, or does not compute as ONNX defines them.

    @converter(INTERNAL, "UnpackBits")
    def unpack_bits(builder, inputs, attributes): ...    # -> relax.Expr

Every file here is imported with the package. Indices are checked and counted from the start before
(operators/check_indices.py).
"""

from importlib import import_module
from pkgutil import iter_modules

from subbyte.tvm_kernels.relax_converters.converter import CONVERTERS, Converter, converter

__all__ = ["CONVERTERS", "Converter", "converter"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
