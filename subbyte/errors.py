"""The errors that users see: each says what failed, where, what was found, what was expected, and what to do.

Every error that subbyte raises on purpose is a `SubbyteError`. The command line prints it in one line and exits with
`exit_code`: 2 for a request that cannot be right (usage), 1 for everything else.
"""

from __future__ import annotations

from collections.abc import Iterable

MORE_MEMORY = "give the process more, or take a smaller model"  # what to do where memory runs out


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 300 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class SubbyteError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1

    def __reduce__(self) -> tuple[object, ...]:
        # Python's own makes the error again by calling its class with the message, which takes other arguments in some:
        # a process that cannot unpickle the error of its worker waits without end (multiprocessing.Pool).
        return _made_again, (type(self), self.args), self.__dict__


def _made_again(kind: type[SubbyteError], arguments: tuple[object, ...]) -> SubbyteError:
    error = kind.__new__(kind)
    error.args = arguments
    return error


class UsageError(SubbyteError):
    """The request itself is wrong: an unknown name, an option that does not fit, a missing file."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is in no registry; the message suggests the nearest one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        import difflib  # here: whoever makes no mistake does not wait for it

        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        super().__init__(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names)}.")
        self.kind, self.name, self.known = kind, name, names


class FormatError(SubbyteError, ValueError):
    """Levels, codes, scales or payloads that a low-bit format cannot hold."""


class RegistrationError(SubbyteError):
    """An entry of a register that lacks a part, or has a wrong one."""


class DataError(SubbyteError):
    """A data set that is missing, unreadable or of the wrong shape."""


class CheckpointError(SubbyteError):
    """A checkpoint that is damaged, or belongs to another model."""


class QuantizationError(SubbyteError):
    """A model, layer or configuration that cannot be quantized as asked."""


class TrainingError(SubbyteError):
    """A run that cannot go on: its loss or its weights are not finite."""


class ExportError(SubbyteError):
    """A model that cannot be written as ONNX, or an export that does not equal its source."""


class ExportWarning(UserWarning):
    """What an export has to say about a file that was written and is right."""


class TelemetryWarning(UserWarning):
    """Another program imported a library in a way that lets it report to its makers."""


class ModelError(SubbyteError):
    """An ONNX file that is malformed or outside what the compiler accepts."""


class CompileError(SubbyteError):
    """A valid model that cannot be compiled as asked, e.g. a fallback under `--strict`."""


class ToolchainError(SubbyteError):
    """A compiler, linker or emulator that is missing or failed."""


class BundleError(SubbyteError):
    """A `.subbyte` bundle that is damaged, hostile, or for another machine."""


class InputError(SubbyteError, ValueError):
    """Inputs given to a session with the wrong shape, dtype or values."""


class SessionError(SubbyteError):
    """A session used after close or in a forked process, or that failed while it was made or run."""


class WriteError(SubbyteError):
    """A file that cannot be written: a full or read-only disk, no permission, a folder that is gone."""


class EnergyError(SubbyteError):
    """An energy counter that is absent, unreadable, or whose window is too short to trust."""


class MissingDependencyError(SubbyteError):
    """An optional part that is not installed; the message names the extra that brings it."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"'{module}' is not installed and this needs it. Install it with: pip install 'subbyte[{extra}]'"
        )
