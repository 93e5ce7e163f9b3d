"""Whole models, through the compiled bundle, against onnxruntime float and int8 in one interleaved run.

    python benchmarks/models.py resnet18:binary deit_tiny:ternary [--threads 1] [--seconds 5] [--json models.json]

Weights are random: latency and size do not depend on them. Accuracy is the matter of benchmarks/fashion_mnist.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from measured_on import measured_on

import subbyte
from subbyte.files.output import write_file
from subbyte.judge.verdict import compare, prepare
from subbyte.models import untrained

SIZES = {"resnet18": (3, 224), "deit_tiny": (3, 224), "resnet8": (3, 32), "ds_cnn": (1, 28), "vit_micro": (1, 28)}


def build(name: str, scheme: str, folder: Path) -> Path:
    """The bundle of a randomly initialised model of the zoo; its ONNX file lies beside it."""
    channels, size = SIZES[name]
    model, examples = untrained(
        name, scheme, classes=1000 if size == 224 else 10, channels=channels, size=size, batch=2
    )
    subbyte.export(model, folder / "model.onnx", example=examples)
    report = subbyte.compile(folder / "model.onnx", folder / "model.subbyte")
    for row in report.fallbacks:
        print(f"  in float: {row}")
    return folder / "model.subbyte"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet18:binary", "deit_tiny:ternary"], metavar="MODEL:SCHEME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for item in arguments.models:
        name, _, scheme = item.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            bundle = build(name, scheme, Path(folder))
            found = compare(prepare(bundle), threads=arguments.threads, seconds=arguments.seconds)
        rows.append({"model": name, "scheme": scheme, **found.to_json()})
        print(f"{name} {scheme}, {arguments.threads} thread(s), {found.rounds} rounds")
        for row in found.contenders:
            print(
                f"  {row.name:<22}{row.latency_min:>9.2f} ms min{row.latency_median:>9.2f} ms median"
                f"{row.speedup_min:>8.2f}x min{row.speedup_median:>8.2f}x median{row.nbytes:>13,} bytes"
            )
        print("  " + " ".join([*found.sentences, *found.warnings]), flush=True)
    if arguments.json:
        report = {"machine": measured_on(), "rows": rows}
        write_file(arguments.json, json.dumps(report, indent=1, default=str).encode())


if __name__ == "__main__":
    main()
