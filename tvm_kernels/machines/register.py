"""The register of targets: those of targets/, of a user's program, and `host`."""

from __future__ import annotations

from collections.abc import Iterator

from subbyte.errors import RegistrationError, UnknownNameError, UsageError
from subbyte.tvm_kernels.machines.host import host_target
from subbyte.tvm_kernels.machines.target import Target

_rows: dict[str, Target] = {}


def register_target(target: Target) -> Target:
    """Make a target known by its name; raises RegistrationError when it is taken, or for anything but a Target."""
    if not isinstance(target, Target):
        raise RegistrationError(f"register_target expects a Target, got {target!r}")
    if target.name in _rows or target.name == "host":
        raise RegistrationError(f"target '{target.name}' is registered twice; choose another name")
    _rows[target.name] = target
    return target


def all_targets() -> Iterator[Target]:
    """Every target, `host` first, in the order of registration."""
    yield host_target()
    yield from tuple(_rows.values())


def get_target(name: str) -> Target:
    """The target of that name; raises UnknownNameError with the nearest name, UsageError for anything but a text."""
    if not isinstance(name, str):
        raise UsageError(f"target is {name!r}, expected a name that `subbyte targets` lists, or a Target")
    if name == "host":
        return host_target()
    if name not in _rows:
        raise UnknownNameError("target", name, ["host", *_rows])
    return _rows[name]
