"""The nodes that lowering itself puts into a graph: their domains and names. No file has them."""

from __future__ import annotations

from subbyte.dialect.function import find
from subbyte.dialect.known_operators import NO_PRODUCTS
from subbyte.dialect.macs import MACS
from subbyte.dialect.names import DOMAIN

KERNEL = "kernel"  # the domain of nodes with an operator of operators/, which are named after its kind
INTERNAL = "internal"  # of all others
INTERNAL_OPERATORS = {
    "View": "the same bytes with another shape",
    "Part": "consecutive elements of a tensor, from the attribute `start`",
    "UnpackBits": "packed bits as float32 -1 and +1",
    "QuantizeCodes": "a quantizer whose factor and codes are attributes",
    "Silu": "x * sigmoid(x)",
    "ToFloat16": "a Cast of float32, with the rounding of ONNX",
    "FromFloat16": "a Cast to float32",
}


def is_known(domain: str, op: str) -> bool:
    """Whether there is such an operator: of ONNX, of the dialect, of lowering, or of another domain that is read."""
    if domain == DOMAIN:
        return find(op) is not None
    if domain == INTERNAL:
        return op in INTERNAL_OPERATORS
    name = f"{domain}.{op}" if domain else op
    return name in MACS or name in NO_PRODUCTS
