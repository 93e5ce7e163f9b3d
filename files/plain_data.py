"""Reads plain data that a user wrote: lists, mappings, texts and numbers in YAML, or in JSON (a file named .json).

Nothing in it makes an object or refers to another part; a key is given once; the whole file is of a stated size. A
number may be written as 1e-3, which YAML 1.1 takes for a text.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from subbyte.errors import MissingDependencyError, UsageError, one_line
from subbyte.files.plain import open_plain


def read_plain_data(path: str | Path, largest: int, what: str) -> Any:
    """The data in the file `path`, `what` it is to be ("a recipe"), of at most `largest` bytes; raises UsageError."""
    path = Path(path)
    try:
        with open_plain(path) as file:
            content = file.read(largest + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read '{path}' ({reason}); give the file of {what}.") from error
    if len(content) > largest:
        raise UsageError(f"'{path}' has over {largest} bytes, expected {what}; give another file.")
    try:
        text = content.decode("utf-8")
        return json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else _yaml(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"'{path}' is not {what}: {one_line(error)}.") from error


def plain_data_line(data: Any) -> str:
    """YAML of plain data in one line, which `read_plain_data` reads."""
    yaml = _module()

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined]
        """Which quotes the texts that `_yaml` takes for numbers."""

    Dumper.add_implicit_resolver(*_NUMBERS)
    text = str(
        yaml.dump(data, Dumper=Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    )
    return text.removesuffix("...\n").strip()


_NUMBERS = ("tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+\Z"), "-+.0123456789")


def _module() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError("yaml", "train") from error
    return yaml


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of pairs; raises ValueError for a key that comes twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key '{key}' is given twice")
        found[key] = value
    return found


def _yaml(text: str) -> Any:
    yaml = _module()

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Without aliases, which may repeat one part without bounds, and without keys that come twice."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise ValueError(f"line {self.peek_event().start_mark.line + 1} refers to another part (*); repeat it")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            wrong = next((key for key in keys if not isinstance(key, str)), None)
            if wrong is not None:
                raise ValueError(f"line {node.start_mark.line + 1} has the key {wrong!r}, expected a text")
            values = [self.construct_object(value, deep=True) for _, value in node.value]
            return _once(list(zip(keys, values, strict=True)))

    Loader.add_implicit_resolver(*_NUMBERS)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from error
