"""The command line: a list of commands, each in a file of its own, imported only when it is called.

Errors raised on purpose (`SubbyteError`) come out in one line with their exit code (2 usage, 1 failure); `--debug`
shows the traceback instead.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from subbyte import __version__
from subbyte.errors import MORE_MEMORY, MissingDependencyError, SubbyteError, UnknownNameError, UsageError
from subbyte.runtime.printable import printable

_UNMAPPED = "failed to map segment from shared object"  # what the loader says of a library that memory has no room for

# To add a command: write a file of its name that defines it, and add its row here.
COMMANDS = (
    "train",
    "quantize",
    "curves",
    "recipe",
    "sensitivity",
    "export",
    "inspect",
    "compile",
    "run",
    "check",
    "bench",
    "targets",
    "schemes",
    "models",
    "data",
    "tasks",
    "losses",
    "formats",
    "doctor",
)

# Which extra brings a module that a command could not import.
_EXTRAS = {
    "torch": "train",
    "lightning": "train",
    "safetensors": "train",
    "sklearn": "train",
    "yaml": "train",
    "tvm": "compile",
}
_EXTRAS_BY_COMMAND = {("compile", "onnx"): "compile"}  # where another extra than the usual one brings it


class Commands(click.Group):
    """A click group that imports a command's file on demand and prints our errors in one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        from subbyte.cli.output import standard_output
        from subbyte.cli.termination import cleaned_up_on_termination, without_torch_cache

        with standard_output(), cleaned_up_on_termination(), without_torch_cache():
            return super().main(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            raise UnknownNameError("command", name, COMMANDS)
        command = getattr(import_module(f"subbyte.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            _refuse_deleted_folder()
            return super().invoke(ctx)
        except Exception as error:
            if ctx.params.get("debug") or isinstance(error, click.exceptions.ClickException | click.exceptions.Exit):
                raise
            status, text = _one_line(error, ctx.invoked_subcommand or "")
            click.echo(f"error: {printable(' '.join(text.split()))}", err=True)
            raise click.exceptions.Exit(status) from None


def _refuse_deleted_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:  # torch's libraries end the process there
        raise UsageError("the current folder was deleted; change to one that is there (cd), and run again") from error


def _one_line(error: Exception, command: str) -> tuple[int, str]:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("subbyte"):
        top = error.name.split(".")[0]
        error = MissingDependencyError(top, _EXTRAS_BY_COMMAND.get((command, top)) or _EXTRAS.get(top, "export"))
    if isinstance(error, SubbyteError):
        return error.exit_code, str(error)
    from subbyte.cli.output import unprinted
    from subbyte.files.output import what_to_do

    told = unprinted(error)
    if told is not None:
        return told.exit_code, str(told)
    known = what_to_do(error) if isinstance(error, OSError) else None
    if isinstance(error, OSError) and known is not None:
        return 1, f"{error.filename or 'a temporary file'}: {known}"
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and _UNMAPPED in str(error)):
        return 1, f"`subbyte {command}` takes more memory than there is; {MORE_MEMORY}"
    return 1, f"{type(error).__name__}: {error} (not an error subbyte expects; run again with --debug and report it)"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="subbyte")
def main(debug: bool) -> None:
    """Networks trained below eight bits: train, export, compile, run, check, measure.

    \b
    subbyte train resnet8 --data digits --scheme ternary --epochs 15 --out runs/t
    subbyte export runs/t -o t.onnx
    subbyte compile t.onnx --target host -o t.subbyte
    subbyte bench t.subbyte --baseline onnxruntime
    """


if __name__ == "__main__":
    sys.exit(main())
