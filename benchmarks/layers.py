"""One layer at a time, through the compiled bundle, against onnxruntime in one interleaved run.

    python benchmarks/layers.py [--threads 1] [--seconds 2] [--only ternary] [--without amxint8] [--json layers.json]

For every layer and scheme: a torch module is quantized, exported, compiled for this machine, loaded as a bundle, and
timed in turn with onnxruntime on the float and on the int8 (onnxruntime's own quantizer) version of the same layer:
ten calls of each in a row, as a layer that runs again and again, and call by call, each with the caches full of what
the others left there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measured_on import measured_on

import subbyte
from subbyte.files.output import write_file
from subbyte.judge.verdict import compare, prepare
from subbyte.models.quant import get_scheme, quantize
from subbyte.tvm_kernels import get_target

# name -> (module, shape of its input)
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "197x384x384": (lambda: torch.nn.Linear(384, 384), (1, 197, 384)),
    "197x384x1536": (lambda: torch.nn.Linear(384, 1536), (1, 197, 384)),
    "conv 14x14x256->256": (lambda: torch.nn.Conv2d(256, 256, 3, padding=1), (1, 256, 14, 14)),
}
TURNS = (10, 1)  # calls of each contender in a row
SCHEMES = ("int8", "ternary", "pow2", "int4", "binary")


def build(make: Any, shape: tuple[int, ...], scheme: str, folder: Path, without: frozenset[str] = frozenset()) -> Path:
    """The bundle of one quantized layer, for this CPU less some features; its ONNX file lies beside it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(make())
    example = torch.randn(shape)
    model = quantize(model, get_scheme(scheme, keep=None), example=example)
    with torch.no_grad():
        model.train()(example)  # lets the activation quantizers see their range
    model.eval()
    subbyte.export(model, folder / "layer.onnx", example=example)
    host = get_target("host")
    target = replace(host, features=host.features - without)
    subbyte.compile(folder / "layer.onnx", folder / "layer.subbyte", strict=True, target=target)
    return folder / "layer.subbyte"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default="", help="schemes, comma separated")
    parser.add_argument("--without", default="", help="CPU features that our kernels must do without, comma separated")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(
        f"{'layer':<21}{'scheme':<9}{'turn':>4}{'us min':>9}{'us med':>9}"
        f"{'vs float (min, med)':>22}{'vs int8 (min, med)':>22}"
    )
    for layer, (make, shape) in LAYERS.items():
        for scheme in arguments.only.split(",") if arguments.only else SCHEMES:
            with tempfile.TemporaryDirectory() as name:
                bundle = build(make, shape, scheme, Path(name), frozenset(arguments.without.split(",")))
                for turn in TURNS:
                    found = compare(prepare(bundle), threads=arguments.threads, seconds=arguments.seconds, turn=turn)
                    ours, floating, integer = found.contenders
                    rows.append({"layer": layer, "scheme": scheme, "turn": turn, **found.to_json()})
                    print(
                        f"{layer:<21}{scheme:<9}{turn:>4}"
                        f"{1e3 * ours.latency_min:>9.1f}{1e3 * ours.latency_median:>9.1f}"
                        f"{floating.speedup_min:>12.2f}{floating.speedup_median:>10.2f}"
                        f"{integer.speedup_min:>12.2f}{integer.speedup_median:>10.2f}",
                        flush=True,
                    )
    if arguments.json:
        context = measured_on()
        write_file(arguments.json, json.dumps({"machine": context, "rows": rows}, indent=1, default=str).encode())


if __name__ == "__main__":
    main()
