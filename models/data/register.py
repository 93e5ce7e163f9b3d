"""The register of data sets. To add one: a function with `@register_data(...)` in a file of this folder.

    @register_data("mine", summary="what it holds, and where it comes from")
    def mine(path: Path | None = None, size: int = 32) -> Data:
        ...

It gives a `Data`, and raises DataError for files that are missing or damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from subbyte.errors import UnknownNameError, UsageError
from subbyte.models.data.data_set import Data

_DATA: dict[str, tuple[Callable[..., Data], str]] = {}


def register_data(name: str, *, summary: str) -> Callable[[Callable[..., Data]], Callable[..., Data]]:
    """Register the decorated function, which takes `path` and options, as the data set `name`."""
    if name in _DATA:
        raise UsageError(f"data set '{name}' is registered already; choose another name.")

    def register(load: Callable[..., Data]) -> Callable[..., Data]:
        _DATA[name] = (load, summary)
        return load

    return register


def list_data() -> dict[str, str]:
    """Every data set by name, with one line about it."""
    return {name: _DATA[name][1] for name in sorted(_DATA)}


def load_data(name: str, path: str | Path | None = None, **options: Any) -> Data:
    """Load the data set `name`, from `path` where it needs one.

    Raises `UnknownNameError` for the name and `DataError` for files that are missing or damaged.
    """
    if name not in _DATA:
        raise UnknownNameError("data set", name, _DATA)
    return _DATA[name][0](path=None if path is None else Path(path), **options)
