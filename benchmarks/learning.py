"""What is lost below eight bits, by training and without it: resnet8 on Fashion-MNIST, cell by cell, resumable.

    python benchmarks/learning.py --list                       # every cell, and what is known of it
    python benchmarks/learning.py                              # those that are missing, in their order
    python benchmarks/learning.py --only '12k/*/0' overhead    # some of them; --again: those that are known, too

A cell is one training, one post-training quantization, or the measurement of the overhead. Each is written to
benchmarks/results/learning.json when it ends, with its settings: a cell that was made with other settings than this
program has is refused. Checkpoints are in runs/learning/; a training that was stopped goes on where it was.

Every training has five epochs, the optimizer and learning rate of `train`, and one thread. Those below float start from
the float model of the same seed, so that they have seen ten epochs in all: `float-longer` has, too. Accuracies are of
the last epoch, in eval mode (exact integers), on all 10,000 test images, by which nothing was chosen. Seconds are those
of the CPU, which other programs change little; `overhead` alone measures them, on 2,560 images.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subbyte.errors import CheckpointError
from subbyte.files.output import write_file
from subbyte.models import Data, create, load_data, train
from subbyte.models.checkpoint import read_config, versions
from subbyte.models.data import ImageTensors
from subbyte.models.post import quantize
from subbyte.models.quant import parameter_groups
from subbyte.models.quant import quantize as quantize_module
from subbyte.models.train.batches import EpochBatches, batch_loader
from subbyte.models.train.lightning import Callback

RESULTS = Path(__file__).parent / "results" / "learning.json"
FOLDER = Path("runs/learning")
EPOCHS = 5
SEEDS = (0, 1, 2)
IMAGES = {"12k": 12_000, "60k": 60_000}  # the first of the training set
FIRST_AND_LAST = [{"match": "first-and-last", "scheme": "int8"}, {"rest": True, "scheme": "ternary"}]
TRAINED: dict[str, dict[str, Any]] = {
    "float": {"scheme": "float"},
    "int8": {"scheme": "int8", "scheme_options": {"keep": None}},
    "ternary": {"scheme": "ternary", "scheme_options": {"keep": None}},
    "recipe": {"recipe": FIRST_AND_LAST},
    "float-longer": {"scheme": "float"},
}
CALIBRATORS = ("min-max", "percentile", "mse", "entropy")
BATCH, STEPS, ROUNDS = 128, 20, 5  # of the overhead: images, steps of a turn, turns of each contender


@dataclass(frozen=True)
class Cell:
    """What is measured: `fields` of a Run or of PostTraining, on so many images, from the checkpoint of `start`."""

    name: str
    kind: str  # "train", "post" or "overhead"
    fields: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    start: str | None = None

    @property
    def folder(self) -> Path:
        """Where its checkpoint is."""
        return FOLDER / self.name

    def settings(self) -> dict[str, Any]:
        """All that its result depends on, as JSON has it."""
        settings = {"kind": self.kind, "fields": dict(self.fields), "images": self.images, "start": self.start}
        found: dict[str, Any] = json.loads(json.dumps(settings))
        return found


def cells() -> list[Cell]:
    """Every cell, in the order in which they are made: a cell after the one that it starts from."""
    found = [Cell("overhead", "overhead", {"batch": BATCH, "steps": STEPS, "rounds": ROUNDS})]
    for images, seeds in (("12k", SEEDS), ("60k", SEEDS[:1])):
        for seed in seeds:
            start = f"{images}/float/{seed}"
            for name, chosen in TRAINED.items():
                fields = {"epochs": EPOCHS, "seed": seed, **chosen}
                begin = None if name == "float" else start
                found.append(Cell(f"{images}/{name}/{seed}", "train", fields, IMAGES[images], begin))
            for calibrator in CALIBRATORS:
                fields = {"scheme": "int8", "scheme_options": {"keep": None}, "calibrator": calibrator, "seed": seed}
                found.append(Cell(f"{images}/post-{calibrator}/{seed}", "post", fields, IMAGES[images], start))
    return found


# ---- making a cell ----


def first_images(images: int | None) -> Data:
    """Fashion-MNIST with the first so many training images."""
    data = load_data("fashion-mnist")
    whole = data.train
    assert isinstance(whole, ImageTensors)
    return replace(data, train=ImageTensors(whole.pixels[:images], whole.labels[:images], whole.normalization))


def trained(cell: Cell) -> dict[str, Any]:
    """The accuracy after each epoch, of a training."""
    init = None if cell.start is None else FOLDER / cell.start
    data = first_images(cell.images)
    result = train("resnet8", data, out=cell.folder, init=init, resume=True, **cell.fields)
    return {"accuracy": result.accuracy, "accuracies": [row["test_accuracy"] for row in result.history]}


def post_trained(cell: Cell) -> dict[str, Any]:
    """The accuracy of a post-training quantization."""
    assert cell.start is not None
    result = quantize(FOLDER / cell.start, data=first_images(cell.images), **cell.fields)
    return {"accuracy": result.accuracy, "float_accuracy": result.float_accuracy, "samples": result.samples}


class StepSeconds(Callback):
    """CPU seconds of the steps of a run, from the second on: in the first, quantizers start."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())

    def seconds(self) -> float:
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def plain_step_seconds(data: Data) -> float:
    """CPU seconds of a step of a loop in plain torch: the float network, batches, augmentation and AdamW of `train`."""
    torch.manual_seed(0)
    model: nn.Module = create("resnet8", classes=10, channels=1, size=28).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=2e-3, weight_decay=1e-4), lr=2e-3)
    generator, ends = torch.Generator().manual_seed(0), []
    assert data.augment is not None
    for images, labels in batch_loader(data.train, EpochBatches(STEPS * BATCH, BATCH, shuffle=True)):
        inputs = data.augment(images, generator).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        ends.append(time.process_time())
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def train_step_seconds(data: Data, chosen: Mapping[str, Any]) -> float:
    """CPU seconds of a step of `train`."""
    clock = StepSeconds()
    out = FOLDER / "overhead"
    train(
        "resnet8",
        data,
        epochs=1,
        batch_size=BATCH,
        out=out,
        overwrite=True,
        progress=False,
        callbacks=[clock],
        **chosen,
    )
    return clock.seconds()


def overhead(cell: Cell) -> dict[str, Any]:
    """CPU seconds of a step by turns: a loop in plain torch, and `train` with each scheme; and where they go."""
    data = first_images(STEPS * BATCH)
    test = data.test
    assert isinstance(test, ImageTensors)
    data = replace(data, test=ImageTensors(test.pixels[:BATCH], test.labels[:BATCH], test.normalization))
    contenders: dict[str, Callable[[], float]] = {"plain torch": lambda: plain_step_seconds(data)}
    for name in ("float", "int8", "ternary", "recipe"):
        contenders[name] = lambda name=name: train_step_seconds(data, TRAINED[name])  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, measure in contenders.items():
            seconds[name].append(measure())
    return {"step_seconds": seconds, "operators": {name: operators(name) for name in ("float", "int8", "ternary")}}


# Ranges of torch's profiler: what a step spends its time in. The rest is the optimizer, Python, and small operators.
RANGES = {
    "convolution": ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::addmm"),
    "norm": ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
    "fake-quantize": ("LearnedStepFunction", "LearnedStepFunctionBackward"),
    "learned step": ("PositiveStepFunction", "PositiveStepFunctionBackward"),
}


def operators(scheme: str) -> dict[str, float]:
    """Milliseconds of a step by kind of operator, as torch's profiler counts them, and of the whole step."""
    data = first_images(BATCH)
    images, labels = data.train.batch(slice(0, BATCH))  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = create("resnet8", classes=10, channels=1, size=28)
    model = quantize_module(model, scheme, example=images).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=2e-3, weight_decay=1e-4), lr=2e-3)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(STEPS):
            step()
    events = profile.key_averages()
    times = {event.key: event.cpu_time_total / 1e3 / STEPS for event in events}
    found = {kind: sum(times.get(name, 0.0) for name in names) for kind, names in RANGES.items()}
    return {**found, "step": sum(event.self_cpu_time_total for event in events) / 1e3 / STEPS}


MAKERS: dict[str, Callable[[Cell], dict[str, Any]]] = {"train": trained, "post": post_trained, "overhead": overhead}


# ---- the program ----


def made(cell: Cell) -> dict[str, Any]:
    """The result of a cell with its settings, versions, and what the machine did besides."""
    if cell.start is not None:
        try:
            read_config(FOLDER / cell.start)
        except CheckpointError:
            sys.exit(f"{cell.name} starts from {FOLDER / cell.start}, which is not there: --only {cell.start} --again")
    result = MAKERS[cell.kind](cell)
    load = {"load_1min": round(os.getloadavg()[0], 1)} if cell.kind == "overhead" else {}
    return {"settings": cell.settings(), **result, **load, "versions": versions()}


def refuse_others(known: Mapping[str, Any], wanted: Mapping[str, Cell], again: bool) -> None:
    """Exit where the JSON holds a cell that this program has not, or one that was made with other settings."""
    for name, row in known.items():
        now = wanted[name].settings() if name in wanted else None
        if now is None:
            sys.exit(f"{RESULTS}: '{name}' is no cell of this program; delete it there.")
        if row["settings"] != now and not again:
            sys.exit(f"{RESULTS}: '{name}' was made with {row['settings']}, now it has {now}; make it --again.")


def main() -> None:
    """Make what is asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="CELL", help="names, or patterns as of a shell")
    parser.add_argument("--list", action="store_true", help="make nothing")
    parser.add_argument("--again", action="store_true", help="make those that are known, too")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    wanted = {cell.name: cell for cell in cells()}
    for pattern in chosen.only:
        if not fnmatch.filter(wanted, pattern):
            sys.exit(f"no cell is called '{pattern}'; see --list.")
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    refuse_others(known, wanted, chosen.again)
    for name, cell in wanted.items():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in chosen.only):
            continue
        if not chosen.list and (chosen.again or name not in known):
            known[name] = made(cell)
            inside = {one: known[one] for one in wanted if one in known}
            write_file(RESULTS, (json.dumps(inside, indent=1) + "\n").encode())
        print(f"{name:24} {said(known.get(name))}", flush=True)


def said(row: Mapping[str, Any] | None) -> str:
    """A result in one line."""
    if row is None:
        return "-"
    if "accuracy" in row:
        return f"{100 * row['accuracy']:.2f}%"
    plain = row["step_seconds"]["plain torch"]
    ratios = {
        name: statistics.median(a / b for a, b in zip(s, plain, strict=True)) for name, s in row["step_seconds"].items()
    }
    return ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())


if __name__ == "__main__":
    main()
