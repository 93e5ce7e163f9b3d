"""`subbyte run`: one inference."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command()
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--input", "inputs", multiple=True, required=True, help="input.npy, or NAME=input.npy for each input.")
@click.option("--output", type=click.Path(path_type=Path), help=".npy (one output) or .npz (several); default: print.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
def run(bundle: Path, inputs: tuple[str, ...], output: Path | None, threads: int) -> None:
    """Run BUNDLE on arrays saved by NumPy."""
    import numpy as np

    import subbyte
    from subbyte.errors import InputError, UsageError

    arrays: dict[str, np.ndarray] = {}
    positional: list[np.ndarray] = []
    for item in inputs:
        name, equals, path = item.rpartition("=")
        try:
            array = np.load(path if equals else item, allow_pickle=False)
        except FileNotFoundError as error:
            raise UsageError(f"no file '{error.filename}'; --input takes a .npy file") from error
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"'{item}' is not an array saved by numpy.save: {error}") from error
        if equals:
            arrays[name] = array
        else:
            positional.append(array)
    if arrays and positional:
        raise UsageError("name every --input (NAME=file.npy) or none")
    with subbyte.load(bundle, threads=threads) as session:
        result = session.run(arrays or (positional[0] if len(positional) == 1 else positional))
    results = result if isinstance(result, dict) else {"output": result}
    if output is None:
        for name, array in results.items():
            click.echo(f"{name} {array.dtype} {list(array.shape)}\n{array}")
        return
    if len(results) > 1 and output.suffix != ".npz":
        raise UsageError(f"the model has {len(results)} outputs ({', '.join(results)}); save them to a .npz file")
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if output.suffix == ".npz":
                np.savez(file, allow_pickle=False, **results)
            else:
                np.save(file, next(iter(results.values())))
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    click.echo(f"{output}: " + ", ".join(f"{n} {a.dtype} {list(a.shape)}" for n, a in results.items()))
