"""Every task at int8 and ternary: trained, exported, compiled, checked, compared; its score against what chance gives.

    python benchmarks/tasks.py                        # all that is missing, in its order; some minutes
    python benchmarks/tasks.py --only few-shot shapes # those of a task or a data set

Scores are of the last epoch on the whole test set, by which nothing was chosen. That of training, of the bundle in
`check`, and of the bundle in the verdict must be one; a divergence ends the program with 1. Rows are kept in
runs/tasks/tasks.json with their settings, and made again where these changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import subbyte
from subbyte.files.output import write_file
from subbyte.judge.verdict import compare, prepare
from subbyte.models import train

FOLDER = Path("runs/tasks")
SCHEMES = ("int8", "ternary")


@dataclass(frozen=True)
class Example:
    """A task on a data set that is installed or generated, by a small model of the zoo."""

    task: str
    data: str
    model: str
    epochs: int
    data_options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    task_options: dict[str, Any] = field(default_factory=dict)


def of_digits(task: str, epochs: int = 6, **task_options: Any) -> Example:
    return Example(task, "digits", "resnet8", epochs, {"task": task}, {"width": 16}, task_options)


EXAMPLES = (
    of_digits("classification"),
    of_digits("multi-label"),
    of_digits("regression"),
    of_digits("metric-learning", width=32),
    of_digits("contrastive", width=32),
    of_digits("few-shot", epochs=12, width=32),
    Example("forecasting", "signals", "conv1d", 6),
    Example("sequence-labelling", "signals", "conv1d", 4, {"task": "sequence-labelling"}, {"per_position": True}),
    Example("segmentation", "shapes", "unet", 4, {"size": 32}, {"width": 8}),
    Example("language-modelling", "python-text", "decoder", 1, {"context": 64}, {"width": 32, "depth": 2, "heads": 2}),
)


def measured(example: Example, scheme: str, folder: Path) -> dict[str, Any]:
    """What the example reaches at a scheme."""
    settings = asdict(example)
    result = train(**settings, scheme=scheme, out=folder, resume=True)
    file, bundle = folder / "model.onnx", folder / "model.subbyte"
    subbyte.export(folder, file)
    subbyte.compile(file, bundle)
    report = subbyte.check(folder, file, bundle, data=example.data)
    verdict = compare(prepare(bundle), seconds=0.2)
    return {
        "metric": asdict(result.metric),
        "chance": report.chance,
        "trained": result.score,
        "checked": report.stages[-1].score,
        "verdict": {one.name: one.score for one in verdict.contenders},
        "diverged": report.diverged,
        "settings": settings,
    }


def main() -> int:
    """Make what is missing, print the table; 1 where a row diverged or is not above chance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="tasks or data sets")
    chosen = parser.parse_args()
    known = FOLDER / "tasks.json"
    rows: dict[str, Any] = json.loads(known.read_text()) if known.is_file() else {}
    wrong = 0
    for example in EXAMPLES:
        if chosen.only and not {example.task, example.data} & set(chosen.only):
            continue
        for scheme in SCHEMES:
            name = f"{example.task}-{scheme}"
            if rows.get(name, {}).get("settings") != asdict(example):
                rows[name] = measured(example, scheme, FOLDER / name)
                write_file(known, (json.dumps(rows, indent=1) + "\n").encode())
            wrong += not show(name, rows[name])
    return int(bool(wrong))


def show(name: str, row: dict[str, Any]) -> bool:
    """Print a row; whether it is above chance, and its bundle computes what was trained."""
    better = row["trained"] > row["chance"] if row["metric"]["higher_is_better"] else row["trained"] < row["chance"]
    others = ", ".join(f"{who} {score:.4g}" for who, score in row["verdict"].items())
    print(
        f"{name:28} {row['metric']['name']:18} chance {row['chance']:8.4g}  trained {row['trained']:8.4g}  "
        f"checked {row['checked']:8.4g}  {others}{'' if better else '  NOT ABOVE CHANCE'}"
        f"{'  DIVERGED' if row['diverged'] else ''}",
        flush=True,
    )
    return better and not row["diverged"]


if __name__ == "__main__":
    sys.exit(main())
