"""The source text of Python's own library: text that every machine has."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from pathlib import Path

from subbyte.errors import DataError
from subbyte.files import limits
from subbyte.files.plain import read_plain
from subbyte.models.data.data_set import Data
from subbyte.models.data.register import register_data
from subbyte.models.data.split import is_held_out
from subbyte.models.data.text import text_data
from subbyte.models.data.tokenizers import ByteTokenizer
from subbyte.models.options import Count

HELD_OUT = 0.1  # of the files
_OF_THE_MACHINE = ("_sysconfigdata", "sitecustomize", "usercustomize")  # differ from one build to another


@register_data(
    "python-text",
    summary=f"source text of the library of Python {platform.python_version()}, as bytes",
    task="language-modelling",
    shape=("context",),
)
def python_text(context: Count = 128, kilobytes: int | None = None) -> Data:
    """Windows of `context` bytes of the modules that are one file in the library's folder, sorted by name.

    Files are held out by the SHA-256 of their names. `kilobytes` is the most to train on. The text depends on the
    version of Python: `preprocessing` names it, with the SHA-256 of all texts.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in folder.glob("*.py") if not file.name.startswith(_OF_THE_MACHINE))
    try:
        texts = [(file.name, read_plain(file, limits.TEXT_BYTES)) for file in files]
    except OSError as error:
        raise DataError(f"{folder}: the library of this Python cannot be read ({error}).") from error
    digest = hashlib.sha256(b"".join(content for _, content in texts)).hexdigest()
    parts = [[one for one in texts if is_held_out(one[0], HELD_OUT) == part] for part in (False, True)]
    if kilobytes is not None:
        parts[0] = _first(parts[0], 1000 * kilobytes)
    source = {"text": {"python": platform.python_version(), "sha256": digest}}
    return text_data("python-text", parts, ByteTokenizer(), context, source)


def _first(texts: list[tuple[str, bytes]], most: int) -> list[tuple[str, bytes]]:
    found = []
    for where, content in texts:
        found.append((where, content[:most]))
        most -= len(found[-1][1])
    return found
