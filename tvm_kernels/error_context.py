"""The step and node that the compiler is working on: an unexpected exception becomes a CompileError that names them.

@names_its_errors                    # once, on `compile`
def compile(...):
    working_on("rule 'scale'", node)    # wherever work on another step, node or kernel begins
"""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np

from subbyte.errors import MORE_MEMORY, CompileError, SubbyteError, WriteError
from subbyte.files.output import what_to_do

LONGEST = 300  # characters of a foreign message
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Work:
    """A step of the compiler, and the node and kernel that it is working on, if any."""

    step: str
    node: Any = None  # an object with a name: a node of the file or graph, a call of the plan; or the name
    kernel: str = ""

    def __str__(self) -> str:
        name = self.node if isinstance(self.node, str) else getattr(self.node, "name", "")
        kind = getattr(self.node, "op", "") or getattr(self.node, "op_type", "")
        text = f"{self.step}, node '{name}'" if self.node else self.step
        text += f" ({kind})" if kind else ""
        return f"{text}, kernel '{self.kernel}'" if self.kernel else text


_work: ContextVar[Work | None] = ContextVar("work", default=None)


def working_on(step: str, node: Any = None, kernel: str = "") -> None:
    """Set the current step, until the next call."""
    _work.set(Work(step, node, kernel))


@contextmanager
def named_errors() -> Iterator[None]:
    """Raise CompileError, naming the current step, for every exception in this context that is not a SubbyteError."""
    token = _work.set(Work("compiling"))
    try:
        yield
    except SubbyteError:
        raise
    except OSError as error:
        known = what_to_do(error)
        if known is None:
            raise _unexpected(error) from error
        place = error.filename or f"a file in the folder of temporary files, '{tempfile.gettempdir()}'"
        raise WriteError(f"compiling failed at {_work.get()}: {place}: {known}") from error
    except Exception as error:
        raise _unexpected(error) from error
    finally:
        _work.reset(token)


def _unexpected(error: Exception) -> CompileError:
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if isinstance(error, MemoryError):
        return CompileError(
            f"compiling failed at {_work.get()}: it takes more memory than there is ({text}); {MORE_MEMORY}"
        )
    return CompileError(
        f"compiling failed at {_work.get()}: {type(error).__name__}{': ' if text else ''}{text}. This is an error "
        "of subbyte, or of a library under it: please report it with the model"
    )


def names_its_errors(function: Callable[P, R]) -> Callable[P, R]:
    """`function` within `named_errors`; a call that its signature does not take is the caller's TypeError.

    NumPy's warnings are off: infinities and NaN that constants make are refused, or are what the model computes.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        signature.bind(*args, **kwargs)
        with named_errors(), np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return named
