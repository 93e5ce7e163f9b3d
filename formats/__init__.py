"""What a low-bit tensor is: formats, granularity, packing, and the reference arithmetic. Needs NumPy alone."""

from subbyte.formats import binary, integer, power_of_two, reference, ternary
from subbyte.formats.format import Format, all_formats, get, register
from subbyte.formats.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerToken
from subbyte.formats.packing import pack, packed_length, unpack
from subbyte.formats.payload import Payload
from subbyte.formats.tensor import LowBitTensor

__all__ = [
    "Format",
    "Granularity",
    "LowBitTensor",
    "Payload",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "all_formats",
    "binary",
    "get",
    "integer",
    "pack",
    "packed_length",
    "power_of_two",
    "reference",
    "register",
    "ternary",
    "unpack",
]
