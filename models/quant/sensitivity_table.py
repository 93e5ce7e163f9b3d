"""Tables of sensitivities in JSON: what `subbyte sensitivity` writes, and a rule of a recipe names with `of: SCHEME`.

{"kind": "subbyte sensitivity", "version": 1, "of": {"ternary": {"head": {"noise": 0.02, "loss": 0.31}}}, ...}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subbyte.errors import QuantizationError, UnknownNameError
from subbyte.files import limits
from subbyte.files.plain_data import read_plain_data

KIND, VERSION = "subbyte sensitivity", 1


def read_table(path: Path, scheme: Any) -> dict[str, float]:
    """The noise of each layer at a scheme; without a scheme, at the only one that the file has.

    Raises UsageError for a file that cannot be read, QuantizationError or UnknownNameError for one that lacks this.
    """
    data = read_plain_data(path, limits.RECIPE_BYTES, "a table of sensitivities")
    if not isinstance(data, Mapping) or (data.get("kind"), data.get("version")) != (KIND, VERSION):
        raise QuantizationError(
            f"'{path}' is not a table of sensitivities of version {VERSION}; `subbyte sensitivity` makes one"
        )
    measured = data.get("of")
    if not isinstance(measured, Mapping) or not all(isinstance(layers, Mapping) for layers in measured.values()):
        raise QuantizationError(f"'{path}' is damaged; measure again")
    if scheme is None and len(measured) != 1:
        raise QuantizationError(f"'{path}' has several schemes; choose one with `of`: {', '.join(measured)}")
    name = next(iter(measured)) if scheme is None else scheme
    if name not in measured:
        raise UnknownNameError(f"scheme of '{path}'", str(name), measured)
    rows = {layer: row.get("noise") if isinstance(row, Mapping) else None for layer, row in measured[name].items()}
    wrong = next((layer for layer, noise in rows.items() if not _is_noise(noise)), None)
    if wrong is not None:
        raise QuantizationError(f"'{path}' has no noise of '{wrong}' at '{name}': it cannot take that scheme")
    return {str(layer): float(noise) for layer, noise in rows.items() if noise is not None}


def _is_noise(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
