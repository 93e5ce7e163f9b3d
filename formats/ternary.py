"""Ternary: levels -1, 0, +1 in two-bit codes. Zhu et al., "Trained Ternary Quantization", 2017; BitNet b1.58, 2024."""

from __future__ import annotations

from subbyte.formats.format import Format, register

# 00 = -1, 01 = 0, 10 = +1; 11 never occurs and is refused.
TERNARY = register(Format("ternary", 2, (-1, 0, 1, None), "-1, 0, +1 in two bits"))
