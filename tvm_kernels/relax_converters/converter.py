"""The table of converters, {(domain, operator): converter}."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from subbyte.errors import RegistrationError
from subbyte.tvm_kernels.internal_operators import is_known

Converter = Callable[[Any, Sequence[Any], dict[str, Any]], Any]

CONVERTERS: dict[tuple[str, str], Converter] = {}


def converter(domain: str, op: str) -> Callable[[Converter], Converter]:
    """Register the converter of an operator; raises RegistrationError for an unknown operator, or a second one."""
    if not is_known(domain, op):
        raise RegistrationError(
            f"a converter is for '{op}' of domain '{domain}', expected an operator of ONNX, or one of "
            "internal_operators.py"
        )

    def add(function: Converter) -> Converter:
        if not callable(function):
            raise RegistrationError(f"the converter of '{op}' is {function!r}, expected a function")
        if (domain, op) in CONVERTERS:
            raise RegistrationError(f"'{op}' of domain '{domain}' has a converter already; remove one of the two")
        CONVERTERS[domain, op] = function
        return function

    return add
