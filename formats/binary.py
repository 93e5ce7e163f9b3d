"""Binary: levels -1 and +1, one bit, 1 for +1. Courbariaux et al., "Binarized Neural Networks", 2016."""

from __future__ import annotations

from subbyte.formats.energy import ADD
from subbyte.formats.format import Format, register
from subbyte.formats.levels import BINARY_LEVELS

BINARY = register(Format("binary", BINARY_LEVELS, "-1 and +1 in one bit; a set bit is +1", energy=ADD))
