"""The register of data sets. To add one: a function with `@register_data(...)` in a file of this folder.

    @register_data("mine", summary="what it holds, and where it comes from", shape=(3, "height", "width"))
    def mine(path: Path, size: int = 32) -> Data:
        ...

It gives a `Data`, and raises DataError for files that are missing or damaged. A function without `path` takes none;
`path: Path | None = None` need not be given. The other parameters are the options, checked against their annotations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from subbyte.errors import RegistrationError, UnknownNameError, UsageError
from subbyte.models.data.data_set import Data
from subbyte.models.data.named_object import is_object_name
from subbyte.models.options import check_options


@dataclass(frozen=True)
class DataEntry:
    """A data set by name: what it is, and what must be there before it can be loaded."""

    name: str
    load: Callable[..., Data]
    summary: str
    task: str  # that it is for, unless an option says another
    shape: tuple[int | str, ...]  # of one input; a word where it depends on the files or the options
    needs: str  # what to install; empty where nothing is missing

    @property
    def path(self) -> Literal["none", "optional", "required"]:
        """Whether it takes a path."""
        parameter = inspect.signature(self.load).parameters.get("path")
        if parameter is None:
            return "none"
        return "required" if parameter.default is inspect.Parameter.empty else "optional"

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options."""
        return tuple(name for name in inspect.signature(self.load).parameters if name != "path")


_DATA: dict[str, DataEntry] = {}


def register_data(
    name: str, *, summary: str, task: str = "classification", shape: tuple[int | str, ...] = (), needs: str = ""
) -> Callable[[Callable[..., Data]], Callable[..., Data]]:
    """Register the decorated function as the data set `name`; what is said of it is listed without loading it."""
    if name in _DATA:
        raise RegistrationError(f"data set '{name}' is registered already; choose another name.")

    def register(load: Callable[..., Data]) -> Callable[..., Data]:
        _DATA[name] = DataEntry(name, load, summary, task, shape, needs)
        return load

    return register


def get_data(name: str) -> DataEntry:
    """The entry of the data set `name`; raises `UnknownNameError` with the nearest name."""
    if name not in _DATA:
        raise UnknownNameError("data set", name, _DATA)
    return _DATA[name]


def list_data() -> dict[str, str]:
    """Every data set by name, with one line about it."""
    return {name: _DATA[name].summary for name in sorted(_DATA)}


def load_data(name: str, path: str | Path | None = None, **options: Any) -> Data:
    """Load the data set `name`, from `path` where it needs one.

    Raises `UnknownNameError` for the name, `UsageError` for a path or an option that does not fit, `DataError` for
    files that are missing or damaged, `MissingDependencyError` for what is not installed.
    """
    entry = get_data(name)
    check_options(f"data set '{name}'", entry.load, entry.options, options)
    if entry.path == "required" and path is None:
        raise UsageError(f"data set '{name}' needs a path: its files are yours ({entry.summary}).")
    if entry.path == "none":
        if path is not None:
            raise UsageError(f"data set '{name}' takes no path, got '{path}'.")
        return entry.load(**options)
    return entry.load(path=None if path is None else Path(path), **options)


def load_recorded(name: str, path: str | Path | None, options: Mapping[str, Any]) -> Data:
    """`load_data` with options that a checkpoint or an ONNX file has: none of them may name code.

    Raises as `load_data` does, and UsageError for an option `package.module:name`, which would be imported and run.
    """
    for option, value in options.items():
        if isinstance(value, str) and is_object_name(value):
            raise UsageError(
                f"data set '{name}': the file's option '{option}' names code, '{value[:80]}', which is not run; "
                "load the data in Python with load_data, where you name it."
            )
    return load_data(name, path, **options)
