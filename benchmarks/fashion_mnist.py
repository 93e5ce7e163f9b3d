"""Accuracy of resnet8 on Fashion-MNIST in float and below eight bits, ten epochs or fewer each.

    python benchmarks/fashion_mnist.py                     # all schemes, about an hour on one core
    python benchmarks/fashion_mnist.py --only float ternary
    python benchmarks/fashion_mnist.py --check             # then: export, compile, all 10,000 images at every stage

Low-bit models start from the float one and have it as their teacher. The binary one has a shortcut around every
convolution and starts from its own weights, and so does a second ternary one, whose epochs are ten in all. Each
checkpoint is saved as it finishes, under runs/fashion-mnist/<scheme>; a run that was stopped goes on where it was.
Accuracies are of the last epoch, in eval mode (exact integers), on all 10,000 test images; nothing was chosen by them
in this program.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import torch

from subbyte.errors import CheckpointError
from subbyte.files.output import write_file
from subbyte.models import Data, load_data, train
from subbyte.models.checkpoint import read_config, read_metrics, versions
from subbyte.models.data import ImageTensors

SCHEMES: dict[str, dict[str, Any]] = {
    "float": {"epochs": 8, "learning_rate": 3e-3},
    "ternary": {"epochs": 5, "learning_rate": 2e-3, "from_float": True},
    "ternary-own-start": {"scheme": "ternary", "epochs": 10, "learning_rate": 3e-3, "distil": True},
    "int4": {"epochs": 3, "learning_rate": 1e-3, "from_float": True},
    "pow2": {"epochs": 3, "learning_rate": 1e-3, "from_float": True},
    "int8": {"epochs": 2, "learning_rate": 5e-4, "from_float": True},
    "binary": {
        "epochs": 8,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "batch_size": 64,
        "augment": False,
        "distil": True,
    },
}


def arguments(scheme: str, root: Path) -> dict[str, Any]:
    """What `train` is given for a scheme."""
    chosen = {"scheme": scheme, **SCHEMES[scheme]}
    from_float = chosen.pop("from_float", False)
    if from_float:
        chosen["init"] = root / "float"
    if chosen.pop("distil", False) or from_float:
        chosen |= {"loss": "kd", "loss_options": {"temperature": 2.0, "alpha": 0.5}, "teacher": root / "float"}
    return chosen


def finished(folder: Path, epochs: int) -> dict[str, float] | None:
    """Accuracy, epochs and seconds of a checkpoint that has had all its epochs, or None."""
    try:
        metrics = read_metrics(folder)
        done = metrics.get("epochs") == epochs and read_config(folder).training.get("epochs") == epochs
    except CheckpointError:
        return None
    if not done:
        return None
    with (folder / "log.csv").open(newline="") as stream:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(stream))
    return {"accuracy": metrics["accuracy"], "epochs": metrics["epochs"], "seconds": seconds}


def subset(data: Data, images: int | None) -> Data:
    """The first training images only, for a quick look."""
    if images is None:
        return data
    whole = data.train
    assert isinstance(whole, ImageTensors)
    part = ImageTensors(whole.pixels[:images], whole.labels[:images], whole.normalization)
    return dataclasses.replace(data, train=part)


def main() -> None:
    """Train what is asked for and print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCHEMES), default=list(SCHEMES))
    parser.add_argument("--out", type=Path, default=Path("runs/fashion-mnist"))
    parser.add_argument("--data-path", type=Path, help="folder of the four IDX files")
    parser.add_argument("--images", type=int, help="train on the first so many images only; use another --out")
    parser.add_argument("--epochs", type=int, help="instead of each scheme's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare torch, onnxruntime and the bundle as well")
    chosen = parser.parse_args()

    data = subset(load_data("fashion-mnist", chosen.data_path), chosen.images)
    epochs = {scheme: chosen.epochs or int(SCHEMES[scheme]["epochs"]) for scheme in SCHEMES}
    for scheme in chosen.only:
        folder = chosen.out / scheme
        if finished(folder, epochs[scheme]) is None:
            print(f"-- {scheme}", flush=True)
            options = {**arguments(scheme, chosen.out), "epochs": epochs[scheme]}
            train("resnet8", data, out=folder, seed=chosen.seed, resume=True, **options)
        found = {name: finished(chosen.out / name, epochs[name]) for name in SCHEMES}
        rows = {name: row for name, row in found.items() if row is not None}
        save(chosen.out / "accuracy.json", rows, chosen.images)
    show(rows)
    if chosen.check:
        for scheme in chosen.only:
            if scheme != "float":
                check_stages(chosen.out / scheme, chosen.data_path)


def check_stages(folder: Path, data_path: Path | None) -> None:
    """Export and compile a checkpoint, run all test images through every stage, print and save what differs."""
    import dataclasses

    import subbyte

    file, bundle = folder / "model.onnx", folder / "model.subbyte"
    subbyte.export(folder, file)
    subbyte.compile(file, bundle, strict=True)
    report = subbyte.check(folder, file, bundle, data="fashion-mnist", data_path=data_path)
    write_file(folder / "stages.json", (json.dumps(dataclasses.asdict(report), indent=2) + "\n").encode())
    for stage in report.stages:
        print(
            f"{folder.name:17} {stage.name:22} {100 * (stage.score or 0):6.2f}%  changed predictions "
            f"{stage.changed_predictions}, differing integers {stage.differing_codes}, max error {stage.max_error:.3g}"
        )
    print("\n".join(report.findings), flush=True)


def save(file: Path, rows: dict[str, dict[str, float]], images: int | None) -> None:
    """Write the accuracies with the machine and versions they were reached on."""
    content = {
        "model": "resnet8",
        "data": "fashion-mnist",
        "training_images": images or 60_000,
        "test_images": 10_000,
        "schemes": rows,
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, (json.dumps(content, indent=2) + "\n").encode())


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print accuracy and distance from float in percentage points."""
    base = rows.get("float", {}).get("accuracy")
    print(f"{'scheme':17} {'accuracy':>9} {'vs float':>9} {'epochs':>7} {'seconds':>8}")
    for scheme, row in rows.items():
        gap = "" if base is None else f"{100 * (row['accuracy'] - base):+.2f}"
        print(f"{scheme:17} {100 * row['accuracy']:8.2f}% {gap:>9} {row['epochs']:7.0f} {row['seconds']:8.0f}")


if __name__ == "__main__":
    main()
