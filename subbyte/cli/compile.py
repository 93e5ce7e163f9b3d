"""`subbyte compile`: ONNX to a bundle for a target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from subbyte.tvm_kernels import Explanation


@contextmanager
def explaining(asked: bool) -> Iterator[Explanation | None]:
    """An explanation that is printed at the end, after an error, too."""
    if not asked:
        yield None
        return
    from subbyte.cli.tables import print_explanation
    from subbyte.tvm_kernels import Explanation

    explanation = Explanation()
    try:
        yield explanation
    finally:
        print_explanation(explanation)


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--target", default="host", show_default=True, help="The machine that the bundle is for; see `subbyte targets`."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL with .subbyte instead of .onnx.")
@click.option("--name", help="A C identifier, part of every C symbol. Default: the name of the file.")
@click.option("--strict", is_flag=True, help="Refuse a model with a low-bit layer that would be computed in float32.")
@click.option(
    "--golden-inputs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Inputs of the golden run: .npz by name, .npy for one input. Default: random.",
)
@click.option(
    "--state",
    multiple=True,
    metavar="IN=OUT",
    help="A state: in the next run, input IN of the graph has the value of output OUT. Adds to the states of MODEL.",
)
@click.option("--no-replay", is_flag=True, help="Do not run the golden inputs before the bundle is written.")
@click.option(
    "--archive", is_flag=True, help="Add library.a and subbyte.h, to link the model into a C program (Linux targets)."
)
@click.option(
    "--explain",
    is_flag=True,
    help="Print each rewrite rule and kernel that declined a node, with its reason; also before an error.",
)
@click.option("--quiet", is_flag=True, help="Do not print the report (it is stored in the bundle).")
def compile(
    model: Path,
    target: str,
    output: Path | None,
    name: str | None,
    strict: bool,
    golden_inputs: Path | None,
    state: tuple[str, ...],
    no_replay: bool,
    archive: bool,
    explain: bool,
    quiet: bool,
) -> None:
    """Compile MODEL (.onnx) for a target; print and store the kernel of each operator, and the reason.

    If this machine can run the bundle, a child process replays its golden run first: a bundle whose outputs differ is
    refused, with the first operator that differs.
    """
    import subbyte
    from subbyte.cli.output import printing_beside
    from subbyte.files.output import checked_output
    from subbyte.onnx_files.loader import open_onnx

    output = output or model.with_suffix(".subbyte")
    with checked_output(output, "output", model, golden_inputs), printing_beside(output):
        file = open_onnx(model)  # before TVM is imported, which takes seconds: a wrong file is refused at once
        with explaining(explain) as explanation:
            report = subbyte.compile(
                file,
                output,
                target=target,
                strict=strict,
                name=name,
                golden_inputs=golden_inputs,
                replay=not no_replay,
                explain=explanation,
                archive=archive,
                state=state,
            )
        if not quiet:
            from subbyte.cli.tables import print_compile_report

            print_compile_report(report)
        if not output.is_file():  # a pipe: what went into it cannot be opened
            return
        from subbyte.runtime import open_bundle

        with open_bundle(output) as bundle:
            members = ", ".join(f"{name} {member.bytes:,}" for name, member in bundle.manifest.members.items())
        click.echo(f"{output}: {output.stat().st_size:,} bytes for {target} ({members})")
