"""Low-bit number formats, and their registry by name.

A code of `code_bits` bits represents a *level* (levels.py); the real value is level x scale. To add a format, add a
file to this package that makes a `Format` and calls `register`: docs/add-a-format.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError, RegistrationError, UnknownNameError
from subbyte.formats.energy import FLOAT, XOR_POPCOUNT, PerMac
from subbyte.formats.levels import BINARY_LEVELS, IntegerLevels, Levels, Table

UInt8 = npt.NDArray[np.uint8]

_MISSING: Any = object()  # default of required fields, so that `register` can name the one that is missing
_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


@dataclass(frozen=True)
class Format:
    """A low-bit number format."""

    name: str
    levels: Levels = field(default=_MISSING, repr=False)
    summary: str = _MISSING  # a few words, for tables
    energy: PerMac = field(default=_MISSING, repr=False, kw_only=True)  # of one multiply-accumulate: `per_mac`

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return self.levels.code_bits

    @property
    def table(self) -> Table:
        """The level of each code; None for a code without a level."""
        return self.levels.table

    @property
    def integer_levels(self) -> IntegerLevels:
        """The levels, as integer products need them; raises FormatError for real levels."""
        if not isinstance(self.levels, IntegerLevels):
            raise FormatError(f"levels of {self.name} are real numbers; an integer product needs integer levels")
        return self.levels

    @property
    def largest(self) -> int | float:
        """The largest absolute level."""
        return self.levels.largest

    def per_mac(self, activation: Levels | None) -> PerMac:
        """The operations of one multiply-accumulate with an activation of these levels; None: float32."""
        if activation is None:
            return FLOAT if self.levels.integer else self.energy
        return XOR_POPCOUNT if activation == self.levels == BINARY_LEVELS else self.energy

    @property
    def decoder(self) -> str:
        """The ONNX function from packed codes to levels: `DecodeInt4` for int4, `DecodePow2_4n` for pow2_4n."""
        return "Decode" + self.name.capitalize()

    @property
    def dequantizer(self) -> str:
        """The ONNX function from packed codes and scales per group to values: `DequantizeInt4` for int4."""
        return "Dequantize" + self.name.capitalize()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of decoded levels: the smallest integer dtype that holds all of them, or float32."""
        return self.levels.by_code.dtype

    def encode(self, levels: npt.ArrayLike) -> UInt8:
        """Levels (any shape) to uint8 codes; raises FormatError for a level the format does not have."""
        levels = np.asarray(levels)
        if self.levels.integer and not np.issubdtype(levels.dtype, np.integer):
            raise FormatError(f"{self.name}: levels must be integers, got {levels.dtype}")
        codes = self.levels.codes_of(levels)
        if (unknown := codes < 0).any():
            known = self.levels.values.tolist()[:20]
            raise FormatError(f"{self.name} has no level {levels[unknown].flat[0]}; it has {known}")
        return codes.astype(np.uint8)

    def decode(self, codes: UInt8) -> npt.NDArray[Any]:
        """uint8 codes (any shape) to levels of `dtype`; raises FormatError for a code without a level."""
        codes = np.asarray(codes)
        unused = np.array([level is None for level in self.table])
        if codes.size and int(codes.max()) >= len(self.table):
            raise FormatError(f"{self.name}: code {int(codes.max())} does not fit into {self.code_bits} bits")
        if unused.any() and unused[codes].any():
            raise FormatError(f"{self.name}: code {int(codes[unused[codes]].flat[0])} has no level")
        return np.asarray(self.levels.by_code[codes])


_registry: dict[str, Format] = {}


def register(fmt: Format) -> Format:
    """Register a format by its name.

    Raises RegistrationError for a field that is missing or wrong, and when the name is taken.
    """
    if not isinstance(fmt, Format):
        raise RegistrationError(f"register expects a Format, got {fmt!r}: docs/add-a-format.md")
    types = {"name": str, "levels": Levels, "summary": str, "energy": PerMac}
    for part in fields(fmt):
        value = getattr(fmt, part.name)
        if value is _MISSING or value == "":
            raise RegistrationError(f"format '{fmt.name}' lacks its '{part.name}'; formats/format.py lists all fields")
        if not isinstance(value, types[part.name]):
            raise RegistrationError(
                f"format '{fmt.name}': its '{part.name}' is {value!r}, expected {types[part.name].__name__}"
            )
    if not _NAME.fullmatch(fmt.name):
        raise RegistrationError(
            f"format '{fmt.name}': expected a name of lower-case letters, digits and underscores, such as pow2_4"
        )
    if fmt.name in _registry:
        raise RegistrationError(f"format '{fmt.name}' is registered twice; choose another name")
    _registry[fmt.name] = fmt
    return fmt


def get(name: str) -> Format:
    """The format of that name; raises UnknownNameError with the nearest name."""
    if name not in _registry:
        raise UnknownNameError("format", name, _registry)
    return _registry[name]


def all_formats() -> Iterator[Format]:
    """Every registered format, in the order of registration."""
    return iter(tuple(_registry.values()))
