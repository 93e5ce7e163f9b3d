"""`subbyte run`: one inference."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np

    from subbyte.runtime.manifest import TensorInfo


@click.command()
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--input", "inputs", multiple=True, required=True, help="input.npy, or NAME=input.npy for each input.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help=".npy (one output) or .npz (several, by name), a pipe or /dev/stdout (.npy); default: print.",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
def run(bundle: Path, inputs: tuple[str, ...], output: Path | None, threads: int) -> None:
    """Run BUNDLE on arrays saved by NumPy."""
    import subbyte
    from subbyte.cli.output import printing_beside
    from subbyte.errors import UnknownNameError, UsageError
    from subbyte.files.output import checked_output, write_file

    named: dict[str, Path] = {}
    positional: list[Path] = []
    for item in inputs:
        name, equals, path = item.rpartition("=")
        if equals and name in named:
            raise UsageError(f"--input {name}=... is given twice")
        if equals:
            named[name] = Path(path)
        else:
            positional.append(Path(path))
    if named and positional:
        raise UsageError("name every --input (NAME=file.npy) or none")
    arrays_at = [item.rpartition("=")[2] for item in inputs]
    with checked_output(output, "--output", bundle, *arrays_at), subbyte.load(bundle, threads=threads) as session:
        wanted, names = [info.name for info in session.inputs], [info.name for info in session.outputs]
        for name in named:
            if name not in wanted:
                raise UnknownNameError("input", name, wanted)
        if len(inputs) != len(wanted):
            raise UsageError(f"got {len(inputs)} --input, the model needs {len(wanted)}: {', '.join(wanted)}")
        if output is not None and len(names) > 1 and output.suffix != ".npz":
            raise UsageError(
                f"--output {output}: the model has {len(names)} outputs ({', '.join(names)}), a .npz file holds them: "
                f"--output {output.with_suffix('.npz')}"
            )
        files = named or dict(zip(wanted, positional, strict=True))
        arrays = {info.name: _read(files[info.name], info) for info in session.inputs}
        for name, array in arrays.items():
            _check_finite(name, array)
        result = session.run(arrays)
    results = result if isinstance(result, dict) else {names[0]: result}
    if output is None:
        for name, array in results.items():
            click.echo(f"{name} {array.dtype} {list(array.shape)}\n{array}")
        return
    write_file(output, _npz(results) if output.suffix == ".npz" else _npy(results[names[0]]))
    with printing_beside(output):
        click.echo(f"{output}: " + ", ".join(f"{n} {a.dtype} {list(a.shape)}" for n, a in results.items()))


def _npy(array: np.ndarray) -> bytes:
    import numpy as np

    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _npz(results: dict[str, np.ndarray]) -> bytes:
    """What numpy.savez writes; that takes names as keyword arguments, of which it has some for itself ('file')."""
    from zipfile import ZipFile

    file = BytesIO()
    with ZipFile(file, "w") as archive:
        for name, array in results.items():
            archive.writestr(f"{name}.npy", _npy(array))
    return file.getvalue()


def _read(path: Path, info: TensorInfo) -> np.ndarray:
    from subbyte.errors import InputError, UsageError
    from subbyte.runtime.npy import load_npy

    try:
        return load_npy(path, info.dtype, info.shape)
    except FileNotFoundError as error:
        raise UsageError(f"no file '{path}'; --input takes a .npy file") from error
    except (OSError, ValueError) as error:
        text = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise InputError(f"input '{info.name}': '{path}' {text}. Save one input with numpy.save") from error


def _check_finite(name: str, array: np.ndarray) -> None:
    """The check of the session, in the words of the command line, which has no way to turn it off."""
    import numpy as np

    from subbyte.errors import InputError

    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    raise InputError(
        f"input '{name}' holds {array[where]} at {list(where)}: quantized layers have no code for it. Correct the data."
    )
