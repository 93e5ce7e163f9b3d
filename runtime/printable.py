"""Text from files as it is printed: of a length to read, and without characters that could steer a terminal."""

from __future__ import annotations

from typing import Final

SENTENCE: Final = 4000  # characters of an error, a warning or a note
CELL: Final = 200  # of a table; what JSON holds is whole


def printable(text: str, longest: int = SENTENCE) -> str:
    """The text without control characters; of a longer one its start and its end, which says what to do."""
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
    return "".join(char if char.isprintable() else "?" for char in text)
