"""Objects of a user's program by name, `package.module:name`: importing the module runs it."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from subbyte.errors import UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_object_name(text: str) -> bool:
    """Whether this is `package.module:name`, and no path."""
    return bool(_NAME.fullmatch(text))


def import_named(text: str) -> Any:
    """The object `package.module:name`; modules of the working folder are found. Raises UsageError."""
    if not is_object_name(text):
        raise UsageError(f"'{text}' is not the name of an object; expected package.module:name.")
    module, _, name = text.partition(":")
    try:
        with _working_folder_first():
            found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module raises
        raise UsageError(f"'{text}' cannot be imported ({type(error).__name__}: {one_line(error)}).") from error
    return found


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """As `python -m` has it; a command's own entry is the folder of its script."""
    before = list(sys.path)
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path[:] = before
