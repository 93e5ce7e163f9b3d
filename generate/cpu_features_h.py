"""runtime/c/cpu_features.h: the rows of runtime/features.py for the C core."""

from __future__ import annotations

from collections.abc import Iterable

from subbyte.runtime.features import FAMILIES, FEATURES, Bit

PATH = "runtime/c/cpu_features.h"

HEAD = """/* Written by `make generate` from runtime/features.py: do not edit. (The C library has a <features.h>.)
 *
 * SUBBYTE_FEATURES(ROW): a row for each feature that a CPU of this family can be asked about.
 *   ROW(name, word, bit, saved)
 *     word: of the enumeration above it, which needs.c reads from the CPU or the system
 *     bit: of the word, set if the CPU has the feature
 *     saved: bits of XCR0, registers that the system must save for the feature
 */
#ifndef SUBBYTE_CPU_FEATURES_H
#define SUBBYTE_CPU_FEATURES_H

"""


def _macro(name: str, rows: Iterable[str]) -> str:
    return " \\\n  ".join([f"#define {name}(ROW)", *rows]) + "\n"


def _row(name: str, bit: Bit) -> str:
    return f'ROW("{name}", {bit.word}, {bit.number}, 0x{bit.saved:x})'


def text() -> str:
    """The header."""
    asked = {name: family for name, family in FAMILIES.items() if family.words}
    parts = [HEAD]
    for number, (name, family) in enumerate(asked.items()):
        rows = [_row(row.name, row.bit) for row in FEATURES.values() if row.family == name and row.bit]
        parts.append(f"#{'elif' if number else 'if'} {family.asked_if}\n")
        parts.append(f"enum {{ {', '.join(family.words)}, WORDS }};\n")
        parts.append(_macro("SUBBYTE_FEATURES", rows))
    return "".join([*parts, "#endif\n\n#endif\n"])
