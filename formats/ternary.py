"""Ternary: levels -1, 0, +1 in two-bit codes. Zhu et al., "Trained Ternary Quantization", 2017; BitNet b1.58, 2024."""

from __future__ import annotations

from subbyte.formats.energy import ADD
from subbyte.formats.format import Format, register
from subbyte.formats.levels import IntegerTable

# 00 = -1, 01 = 0, 10 = +1; 11 never occurs and is refused.
TERNARY = register(Format("ternary", IntegerTable((-1, 0, 1)), "-1, 0, +1 in two bits", energy=ADD))
