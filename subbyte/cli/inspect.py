"""`subbyte inspect`: what a file holds, layer by layer."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path

import click


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def inspect(model: Path, as_json: bool) -> None:
    """Show the layers of MODEL (.onnx, or a .subbyte bundle): formats, bits per weight, MACs, size in float32.

    Dynamic shapes are a warning; unknown operators and inconsistent shapes are refused, as by `subbyte compile`.
    """
    from subbyte.files.kinds import BUNDLE, kind_of

    if model.suffix == ".subbyte" or kind_of(model) == BUNDLE:
        from subbyte.runtime import open_bundle
        from subbyte.runtime.report import print_manifest

        with open_bundle(model) as bundle:
            if as_json:
                click.echo(bundle.read("manifest.json").decode())
            else:
                from subbyte.cli.tables import open_console

                print_manifest(bundle, open_console(markup=True))
        return
    from subbyte.export import inspect as inspect_onnx

    found = inspect_onnx(model)
    if as_json:
        click.echo(jsonlib.dumps(asdict(found), indent=1, default=str))
        return
    from subbyte.cli.tables import print_inspection

    print_inspection(found)
