"""Write every measured table of README and docs/ from the JSON in benchmarks/results/, in its place between two marks.

    python benchmarks/tables.py            # after a benchmark has saved its JSON
    python benchmarks/tables.py --check    # exit with 1 and name the tables that are not what the JSON says

A table stands in a document between `<!-- table: layers -->` and `<!-- end -->`. To add one, write a function that
makes its lines, put it into TABLES, and put the two marks into the document.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import statistics
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from subbyte.files.output import write_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARKS = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def saved(name: str) -> Any:
    """What a benchmark has saved."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def machine_of(saved_by: Any) -> str:
    """The CPU that a benchmark ran on, with what of it our kernels choose by, and the system."""
    machine = saved_by["machine"]
    known = {"avx2": "AVX2", "avxvnni": "AVX-VNNI", "avx512vnni": "AVX-512 VNNI", "amxint8": "AMX"}
    has = [text for name, text in known.items() if name in machine["features"]]
    cores = f"{machine['usable_cores']} cores{' of a virtual machine' if machine['virtualised'] else ''}"
    return f"{machine['cpu']}, {', '.join(has)}; {cores}; {machine['system']}; subbyte {machine['subbyte']}."


# ---- accuracy ----


def accuracy() -> list[str]:
    """Fashion-MNIST: what each scheme reaches, and the largest sum of integers in it."""
    schemes = saved("fashion_mnist")["schemes"]
    base = schemes["float"]["accuracy"]
    rows = []
    for name, row in sorted(schemes.items(), key=lambda item: item[0] != "float"):
        low_bit = name != "float"
        rows.append(
            [
                name,
                f"{100 * row['accuracy']:.2f}%",
                f"{100 * (row['accuracy'] - base):+.2f}" if low_bit else "",
                f"{row['epochs']:.0f}",
                f"{row['stages']['largest_accumulator']:,}" if low_bit else "",
            ]
        )
    return table(["scheme", "accuracy", "against float", "epochs", "largest integer sum"], rows)


def stages() -> list[str]:
    """Fashion-MNIST: what differs between torch, onnxruntime and the bundle, over all test images."""
    rows = []
    for name, scheme in saved("fashion_mnist")["schemes"].items():
        for stage in scheme.get("stages", {}).get("stages", [])[2:]:  # the first two are torch's own
            changed, differing = stage["changed_predictions"], stage["differing_codes"]
            integers = next(
                re.search(r"[\d,]+ integers", text)
                for text in scheme["stages"]["findings"]
                if text.startswith(stage["name"])
            )
            assert integers is not None
            rows.append([name, stage["name"], f"{changed}", f"{differing} of {integers[0]}", f"{stage['max_error']:g}"])
    return table(["scheme", "against torch eval", "changed predictions", "differing", "largest error"], rows)


# ---- learning ----

LEARNED = {
    "float": "float",
    "float-longer": "float, five more epochs",
    "int8": "int8",
    "recipe": "recipe: first and last int8, rest ternary",
    "ternary": "ternary, every layer",
    "post-min-max": "int8 without training, min-max",
    "post-percentile": "int8 without training, percentile",
    "post-mse": "int8 without training, mse",
    "post-entropy": "int8 without training, entropy",
}


def learning() -> list[str]:
    """Fashion-MNIST: accuracy by training and without it, and the distance from float, by seeds."""
    cells = {name: cell["accuracy"] for name, cell in saved("learning").items() if "accuracy" in cell}
    rows = []
    for what, words in LEARNED.items():
        row = [words]
        for images in ("12k", "60k"):
            found = {name.rpartition("/")[2]: a for name, a in cells.items() if name.startswith(f"{images}/{what}/")}
            gaps = [100 * (accuracy - cells[f"{images}/float/{seed}"]) for seed, accuracy in found.items()]
            row.append(", ".join(f"{100 * accuracy:.2f}%" for accuracy in found.values()) or "not measured")
            row.append("" if what == "float" else ", ".join(f"{gap:+.2f}" for gap in gaps))
        rows.append(row)
    header = ["resnet8", "12,000 images: accuracy by seed", "against float", "60,000 images", "against float"]
    return table(header, rows)


def learning_overhead() -> list[str]:
    """A step of training beside a loop in plain torch, and where its time goes."""
    cell = saved("learning").get("overhead")
    if cell is None:
        return ["Not measured yet."]
    plain, floats = (cell["step_seconds"][name] for name in ("plain torch", "float"))
    rows = []
    for name, seconds in cell["step_seconds"].items():
        milliseconds = [f"{1e3 * min(seconds):.0f}", f"{1e3 * statistics.median(seconds):.0f}"]
        ratios = [
            "" if base is seconds else f"{statistics.median(a / b for a, b in zip(seconds, base, strict=True)):.2f}"
            for base in (plain, floats)
        ]
        rows.append([name if name == "plain torch" else f"train, {name}", *milliseconds, *ratios])
    header = ["", "CPU ms a step, min", "median", "times plain torch (median)", "times float train (median)"]
    kinds = [kind for kind in next(iter(cell["operators"].values())) if kind != "step"]
    shares = [
        [name, *(f"{100 * times[kind] / times['step']:.0f}%" for kind in kinds)]
        for name, times in cell["operators"].items()
    ]
    operators = table(["share of a step, by torch's profiler", *kinds], shares)
    return [*table(header, rows), "", *operators, "", f"Other programs: load {cell['load_1min']:.1f} when it ended."]


# ---- speed ----


def _ratios(contender: Any) -> str:
    return f"{contender['speedup_min']:.2f}, {contender['speedup_median']:.2f}"


def layers(name: str) -> Callable[[], list[str]]:
    """Single layers beside onnxruntime: microseconds and ratios, by turns of ten calls and of one."""

    def lines() -> list[str]:
        by_layer: dict[tuple[str, str], dict[int, Any]] = {}
        data = saved(name)
        for row in data["rows"]:
            by_layer.setdefault((row["layer"], row["scheme"]), {})[row["turn"]] = row["contenders"]
        rows = []
        for (layer, scheme), turns in by_layer.items():
            cells = []
            for turn in (10, 1):
                ours, floating, integer = turns[turn]
                cells += [f"{1e3 * ours['latency_min']:.1f}", _ratios(floating), _ratios(integer)]
            rows.append([layer, scheme, *cells])
        header = ["layer", "scheme", "us", "times float (min, median)", "times int8"]
        said = [*_least(by_layer.values()), "", machine_of(data)]
        return [*table([*header, "us by turns of one", "times float", "times int8"], rows), "", *said]

    return lines


def _least(layers: Collection[dict[int, Any]]) -> list[str]:
    """The smallest ratios of all layers and schemes, and what a call loses when others have had the caches."""
    found = []
    for turn, words in ((10, "ten"), (1, "one")):
        floats, integers = (min(row[turn][engine]["speedup_min"] for row in layers) for engine in (1, 2))
        found.append(f"By turns of {words}, at least {floats:.2f} times float and {integers:.2f} times int8 (min).")
    shares = [1 - row[10][0]["latency_min"] / row[1][0]["latency_min"] for row in layers]
    found.append(f"Fetching is {100 * min(shares):.0f}% to {100 * max(shares):.0f}% of a call by turns of one.")
    return found


SIZES = {"resnet18": 224, "deit_tiny": 224, "resnet8": 32, "ds_cnn": 28, "vit_micro": 28}


def models(name: str) -> Callable[[], list[str]]:
    """Whole models beside onnxruntime: fastest calls in ms, and medians of the ratios."""

    def lines() -> list[str]:
        data = saved(name)
        rows = []
        for row in data["rows"]:
            ours, floating, integer = row["contenders"]
            cells = [f"{contender['latency_min']:.2f}" for contender in row["contenders"]]
            cells += [f"{contender['speedup_median']:.2f}" for contender in (floating, integer)]
            rows.append([f"{row['model']} {row['scheme']}, {SIZES[row['model']]}", *cells])
            assert ours["name"] == "subbyte"
        header = ["model", "ours, ms min", "onnxruntime float", "onnxruntime int8"]
        return [*table([*header, "times float (median)", "times int8 (median)"], rows), "", machine_of(data)]

    return lines


def sizes() -> list[str]:
    """ONNX files of whole models beside the float version of the same graph."""
    rows = []
    for row in saved("models")["rows"]:
        ours, floating, _ = row["contenders"]
        name = f"{row['model']} {row['scheme']}, {SIZES[row['model']]}"
        ratio = floating["nbytes"] / ours["nbytes"]
        rows.append([name, f"{floating['nbytes']:,}", f"{ours['nbytes']:,}", f"{ratio:.1f}"])
    return table(["model", "float ONNX bytes", "ONNX bytes", "times smaller"], rows)


def start_up() -> list[str]:
    """From import to the first result in a fresh process."""
    rows = [
        [name, f"{row['ms_min']:.1f}", f"{row['ms_median']:.1f}", f"{row['rss_mib']:.1f}"]
        for name, row in saved("start_up").items()
    ]
    return table(["", "ms, min", "ms, median", "MiB resident"], rows)


# ---- microcontrollers ----


def cortex_m4() -> list[str]:
    """ds_cnn on the emulated board."""
    rows, base = [], 0
    for row in saved("cortex_m4")["rows"]:
        _, _, size, scheme = Path(row["model"]).stem.split("_")
        base = row["instructions"] if scheme == "float" else base
        counted = f"{row['instructions']:,}"
        share = f"{row['instructions'] / base:.2f}"
        name = f"{size}, {scheme}"
        rows.append([name, f"{row['flash_bytes']:,}", f"{row['ram_bytes']:,}", counted, share])
    return table(["ds_cnn", "flash", "RAM", "instructions", "against float"], rows)


def rv32i() -> list[str]:
    """Models on the emulated RISC-V CPU that cannot multiply: instructions in all, and where they are spent."""
    rows: list[list[str]] = []
    whole, without_float = 0, 0
    for row in saved("rv32i")["rows"]:
        model, scheme = Path(row["model"]).stem.rsplit("_", 1)
        instructions, integers = row["instructions"], row["instructions"] - row["float"]
        if scheme == "int8":
            whole, without_float = instructions, integers
        counts = (instructions, row["float"], row["multiply"], integers - row["multiply"])
        sizes = [f"{row[key]:,}" for key in ("flash_bytes", "ram_bytes")]
        shares = [f"{instructions / whole:.2f}", f"{integers / without_float:.2f}"]
        rows.append([f"{model.replace('_digits', ', digits').replace('_keywords', ', keywords')}, {scheme}", *sizes])
        rows[-1] += [*(f"{count:,}" for count in counts), *shares]
    spent = ["instructions", "of these float", "`__mulsi3`", "the rest"]
    return table(["", "flash", "RAM", *spent, "against int8", "without float"], rows)


# ---- compiling ----


def compile_time() -> list[str]:
    """How long graphs take to compile that are long or wide, and what refused one."""
    data = saved("compile_time")
    rows = []
    for name, row in data["cases"].items():
        outcome = row["error"].removeprefix("'model.onnx': ") or "compiled"
        rows.append([name, *(f"{row[key]:.1f}" for key in ("seconds", "cpu_seconds", "load")), outcome])
    return [*table(["graph", "seconds", "of the CPU", "load", ""], rows), "", machine_of(data)]


def weight_time() -> list[str]:
    """How long one large weight takes from its levels to a plan."""
    data = saved("weight_time")
    keys = ("file_s", "plan_s", "of_the_weight_s")
    rows = [
        [name, *(f"{row[key]:.2f}" for key in keys), f"{row['peak_mib']:.0f}"] for name, row in data["cases"].items()
    ]
    header = ["weight, target", "file, s", "plan, s", "of the weight, s", "peak MiB"]
    return [*table(header, rows), "", machine_of(data)]


# ---- the demo ----

# command -> parts of what it printed: from the first line that begins so, this many lines, or all to the end
EXCERPT: dict[str, tuple[tuple[str, int | None], ...]] = {
    "subbyte inspect": ((r"[\d,]+ bytes in the file", None),),
    "subbyte check": (("", None),),
    "subbyte bench": (("latency, ms", 3), ("Verdict", None)),
}


def demo() -> list[str]:
    """An excerpt of what the demo printed."""
    data = saved("demo")
    lines = []
    for step in data["steps"]:
        parts = next((parts for command, parts in EXCERPT.items() if step["command"].startswith(command)), ())
        lines += [f"$ {step['command']}"] if parts else []
        for begin, count in parts:
            first = next(at for at, line in enumerate(step["lines"]) if re.match(begin, line))
            shown = "\n".join(step["lines"][first:][:count]).rstrip().splitlines()
            lines += [*([] if first == 0 else ["..."]), *shown]
        lines += [""] if parts else []
    load = f"load {data['machine']['load_1min']:.1f} when it ended"
    return [f"On {machine_of(data)} Other programs: {load}.", "", "```", *lines[:-1], "```"]


def limits_of_files() -> list[str]:
    """What a file from outside may ask for, not from JSON but from the program that checks it."""
    from subbyte.files import limits

    rows = [[meaning, f"{getattr(limits, name):,}", f"`{name}`"] for name, meaning in limits.MEANINGS.items()]
    return table(["at most", "", "in `files/limits.py`"], rows)


def fuzzers() -> list[str]:
    """How many drawn files every reader has been given, of those that are owed, and what came of them."""
    rows, done, owed = [], 0, 0
    for name, kind in saved("fuzz").items():
        words: collections.Counter[str] = collections.Counter()
        for piece in kind["pieces"]:
            words.update(piece["words"])
        faults = sum(len(piece["faults"]) for piece in kind["pieces"])
        right = sum(count for word, count in words.items() if word.startswith(("read", "right")))
        cells = [f"{count:,}" for count in (words.total(), kind["wanted"], right, words["refused"], faults)]
        rows.append([name, kind["read_by"], *cells])
        done, owed = done + words.total(), owed + kind["wanted"]
    header = ["kind", "read by", "cases", "of", "right", "refused", "faults"]
    return [*table(header, rows), "", f"{done:,} cases of {owed:,} in all."]


TABLES: dict[str, Callable[[], list[str]]] = {
    "demo": demo,
    "accuracy": accuracy,
    "stages": stages,
    "learning": learning,
    "learning_overhead": learning_overhead,
    "layers": layers("layers"),
    "layers_without_amx": layers("layers_without_amx"),
    "models": models("models"),
    "models_two_threads": models("models_two_threads"),
    "sizes": sizes,
    "start_up": start_up,
    "cortex_m4": cortex_m4,
    "rv32i": rv32i,
    "compile_time": compile_time,
    "weight_time": weight_time,
    "limits": limits_of_files,
    "fuzzers": fuzzers,
}


def written(text: str) -> str:
    """A document with its tables as the JSON says; raises KeyError for a table that is not in TABLES."""

    def fill(found: re.Match[str]) -> str:
        return found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[4]

    return MARKS.sub(fill, text)


def outdated(documents: Sequence[Path] = DOCUMENTS) -> list[str]:
    """The tables that are not what the JSON says, as `document: table`; and those that stand in no document."""
    wrong, seen = [], set()
    for path in documents:
        text = path.read_text()
        for now, made in zip(MARKS.finditer(text), MARKS.finditer(written(text)), strict=True):
            seen.add(now[2])
            if now[3] != made[3]:
                wrong.append(f"{path.name}: {now[2]}")
    return wrong + [f"in no document: {name}" for name in TABLES if name not in seen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is outdated")
    if parser.parse_args().check:
        sys.exit("\n".join(outdated()) or 0)
    for path in DOCUMENTS:
        text = path.read_text()
        if (made := written(text)) != text:
            write_file(path, made.encode())
            print(f"wrote the tables of {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
