"""The register of targets: those of targets/, of a user's program, and `host`."""

from __future__ import annotations

from collections.abc import Iterator

from subbyte.errors import UnknownNameError, UsageError
from subbyte.tvm_kernels.machines.host import host_target
from subbyte.tvm_kernels.machines.target import Target

_rows: dict[str, Target] = {}


def register_target(target: Target) -> Target:
    """Make a target known by its name; raises UsageError when the name is taken."""
    if target.name in _rows or target.name == "host":
        raise UsageError(f"target '{target.name}' is registered twice; choose another name")
    _rows[target.name] = target
    return target


def all_targets() -> Iterator[Target]:
    """Every target, `host` first, in the order of registration."""
    yield host_target()
    yield from tuple(_rows.values())


def get_target(name: str) -> Target:
    """The target of that name; raises UnknownNameError with the nearest name."""
    if name == "host":
        return host_target()
    if name not in _rows:
        raise UnknownNameError("target", name, ["host", *_rows])
    return _rows[name]
