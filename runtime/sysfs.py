"""What Linux shows in files of /proc and /sys: text, and numbers that are nothing but a number."""

from __future__ import annotations

import re
from pathlib import Path

from subbyte.errors import EnergyError

# int() and float() also take what the kernel never writes: "1_000", other alphabets' digits, "nan", "1e3".
_INTEGER = re.compile(r"-?[0-9]{1,20}")


def text_of(path: Path) -> str | None:
    """The file's text without white space at its ends; None when it cannot be read or is empty."""
    try:
        return path.read_text(errors="replace").strip() or None
    except (OSError, ValueError):  # ValueError: a byte 0 in the path, which another file of the system has named
        return None


def integer(text: str | None) -> int | None:
    """The integer that `text` is, as the kernel writes it; None for whatever else it holds."""
    return int(text) if text is not None and _INTEGER.fullmatch(text) else None


def read_integer(path: Path, unit: str, grant: str) -> int:
    """The integer in the file of a counter or sensor; raises EnergyError where there is none, or it is closed."""
    try:
        text = path.read_text(errors="replace").strip()
    except PermissionError as error:
        raise EnergyError(f"cannot read {path}: permission denied. {grant}") from error
    except OSError as error:
        raise EnergyError(
            f"cannot read {path}: {error.strerror}. Is its driver loaded, and the sensor powered?"
        ) from error
    value = integer(text)
    if value is None:
        raise EnergyError(f"{path} holds {text[:40]!r}, expected a number of {unit}")
    return value
