"""Low-bit tensors: formats, granularity, packing, and reference arithmetic. Depends on NumPy only.

Importing this package imports all its modules, which register the formats.
"""

from importlib import import_module
from pkgutil import iter_modules

from subbyte.formats.format import Format, all_formats, get, register
from subbyte.formats.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerToken
from subbyte.formats.levels import BINARY_LEVELS, IntegerLevels, IntegerLine, IntegerTable, Levels, RealTable
from subbyte.formats.packing import pack, packed_length, unpack
from subbyte.formats.payload import Payload
from subbyte.formats.structure import SelectColumns, Structure, Sum
from subbyte.formats.tensor import LowBitTensor

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = [
    "BINARY_LEVELS",
    "Format",
    "Granularity",
    "IntegerLevels",
    "IntegerLine",
    "IntegerTable",
    "Levels",
    "LowBitTensor",
    "Payload",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "RealTable",
    "SelectColumns",
    "Structure",
    "Sum",
    "all_formats",
    "get",
    "pack",
    "packed_length",
    "register",
    "unpack",
]
