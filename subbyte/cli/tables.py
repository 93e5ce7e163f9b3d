"""Reports as tables on a terminal, with rich."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from subbyte.runtime.printable import CELL, printable
from subbyte.runtime.report import meaning

if TYPE_CHECKING:
    from subbyte.export import Inspection
    from subbyte.judge.check import CheckReport
    from subbyte.judge.verdict import Verdict
    from subbyte.models.quant.costs import Costs
    from subbyte.models.quant.sensitivities import Sensitivities
    from subbyte.tvm_kernels import CompileReport, Explanation


def open_console(markup: bool = False) -> Console:
    """A console as wide as the terminal; 132 columns where there is none, so that tables are not folded in a file.

    Text is printed as it is, whatever brackets a name holds. Only the reports of `subbyte.runtime.report`, which
    escape what comes from files, need `markup`.
    """
    if sys.stdout.isatty():
        return Console(markup=markup, emoji=False, highlight=False)
    return Console(markup=markup, emoji=False, highlight=False, width=132, no_color=True)


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> Table:
    """A plain table; the first `numbers` columns are text, the others are right-aligned."""
    made = Table(title=printable(title, CELL), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="left" if index < numbers else "right", overflow="fold")
    for row in rows:
        made.add_row(*(printable(cell, CELL) for cell in row))
    return made


def print_verdict(found: Verdict, console: Console) -> None:
    """The bundle and its baselines side by side, then the verdict."""
    rows = [
        (
            c.name,
            f"{c.latency_min:.3f}",
            f"{c.latency_median:.3f}",
            f"{c.speedup_median:.2f}x",
            f"{c.nbytes:,}",
            "-" if c.score is None or found.metric is None else found.metric.words(c.score),
        )
        for c in found.contenders
    ]
    metric = "accuracy" if found.metric is None else found.metric.title
    headings = ("model", "min ms", "median ms", "time / ours", "ONNX bytes", metric)
    title = f"Verdict: {found.threads} thread(s), {found.rounds} interleaved rounds"
    console.print(table(title, headings, rows))
    console.print(f"float model: {found.float_source}", style="dim")
    scored = f"on the test set of {found.data}" if found.data else "not compared: name a test set with --data"
    scored += f", by {printable(found.scored_on)}" if found.scored_on else ""
    if found.metric is not None and found.chance is not None:
        scored += f"; chance is {found.metric.words(found.chance)}"
    console.print(f"{metric}: {scored}", style="dim")
    console.print(
        f"deployed (library and weights) {found.deployed_bytes:,} bytes; the whole bundle (with bench program, golden "
        f"data) {found.bundle_bytes:,}"
    )
    for sentence in found.sentences:
        console.print(sentence)
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="bold red")


def print_inspection(found: Inspection) -> None:
    """The layers of an ONNX file."""
    rows = [
        (
            layer.name,
            layer.op,
            layer.weight_format,
            layer.activation_format,
            "x".join(map(str, layer.shape)),
            f"{layer.bits_per_weight:.2f}",
            f"{layer.macs:,}",
            f"{layer.parameter_bytes:,}",
        )
        for layer in found.layers
    ]
    headings = ("layer", "operator", "weights", "activations", "shape", "bits/weight", "MACs", "bytes")
    console = open_console()
    console.print(table(found.path, headings, rows, numbers=5))
    if found.float_bytes:
        against = f"{found.smaller:.1f}x smaller" if found.smaller >= 1.05 else "no smaller"
        weights = f"; the same weights in float32 take {found.float_bytes:,}: {against}"
    else:
        weights = ", which holds no weights"
    console.print(f"{found.file_bytes:,} bytes in the file{weights}. {found.macs:,} MACs.")
    if says := meaning(found.metadata):
        console.print(printable(says))
    for before, after in found.states.items():
        console.print(f"state: {printable(before)}, in the next run {printable(after)}")
    for warning in found.warnings:
        console.print(f"warning: {printable(warning)}", style="bold red")


def print_costs(title: str, found: Costs) -> None:
    """What a recipe makes of each layer, and the sums."""
    rows = [
        (
            layer.name,
            layer.kind,
            " ".join("x".join(map(str, shape)) for shape in layer.shapes),
            layer.rule or "-",
            layer.weights,
            layer.activations,
            f"{layer.weight_bits}x{layer.activation_bits}",
            "?" if layer.macs is None else f"{layer.macs:,}",
            f"{layer.weight_bytes:,}",
        )
        for layer in found.layers
    ]
    headings = ("layer", "type", "shape", "rule", "weights", "activations", "bits", "MACs", "bytes")
    console = open_console()
    console.print(table(title, headings, rows, numbers=6))
    for layer in found.layers:
        if layer.why:
            console.print(printable(f"{layer.name} in float: {layer.why}"), style="dim")
    kinds = [f"{count:,} of {bits}" for bits, count in found.macs.items()]
    total = "at least " if found.unknown else ""
    console.print(f"MACs: {total}{sum(found.macs.values()):,}" + (f": {', '.join(kinds)}" if kinds else ""))
    if found.other_macs:
        console.print(f"  {found.other_macs:,} of them multiply activations with each other, in float")
    for line in found.unknown:
        console.print(printable(line), style="bold red")
    console.print(
        f"weights {found.weight_bytes:,} bytes, other parameters {found.other_bytes:,}; in float all parameters take "
        f"{found.float_bytes:,}"
    )
    if found.average_bits is not None:
        console.print(f"{found.average_bits:.2f} bits on average of a quantized weight, without scales")


def print_sensitivities(title: str, found: Sensitivities, console: Console) -> None:
    """Layers by their noise, the most sensitive first: signal-to-noise ratio, and the scores of each scheme."""
    labels = [scheme.label for scheme in found.schemes]
    by = {label: found.of(label) for label in labels}
    first = by[labels[0]]
    names = sorted(first, key=lambda name: -math.inf if first[name].noise is None else -(first[name].noise or 0.0))
    rows, refused = [], []
    for name in names:
        cells = []
        for row in (by[label][name] for label in labels):
            said = "-" if row.decibels is None else f"{row.decibels:.1f}"
            cells += [said, *(f"{row.scores[key]:.4g}" if key in row.scores else "-" for key in found.scores)]
            refused += [row.why] if row.why else []
        rows.append((name, f"{first[name].weights:,}", *cells))
    headings = ["layer", "weights"]
    for label in labels:
        headings += [f"{label} dB", *(f"{key.replace('_', ' ')}" for key in found.scores)]
    console.print(table(title, headings, rows))
    for line in refused:
        console.print(printable(line), style="bold red")
    scores = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in found.scores.items())
    console.print(f"in float: {scores}. dB: signal-to-noise ratio of the output, the layer alone at the scheme")


def print_compile_report(report: CompileReport) -> None:
    """Which kernel serves each operator, and what fell back."""
    rows = [
        (row.name, row.kind, row.kernel, row.weights, row.activation, f"{row.macs:,}", f"{row.weight_bytes:,}")
        for row in report.rows
    ]
    headings = ("operator", "kind", "kernel", "weights", "activations", "MACs", "weight bytes")
    console = open_console()
    console.print(table(f"{report.name} for {report.target}", headings, rows, numbers=5))
    reasons = {(better, reason) for row in report.rows for better, reason in row.passed_over}
    for better, reason in sorted(reasons):
        console.print(printable(f"not {better}: {reason}"), style="dim")
    for line in report.fallbacks:
        console.print(printable(f"in float: {line}"), style="bold red")
    for line in report.notes:
        console.print(f"note: {printable(line)}", style="bold red")
    console.print(
        f"weights {report.weights_bytes:,} bytes, arena {report.arena_bytes:,} bytes, "
        + (f"state {report.state_bytes:,} bytes, " if report.state_bytes else "")
        + f"workspace {report.workspace_bytes:,} bytes per thread"
    )
    if report.flash_bytes is not None:
        parts = ", ".join(f"{what} {nbytes:,}" for what, nbytes in report.ram.items() if nbytes)
        console.print(f"flash {report.flash_bytes:,} bytes, RAM {report.ram_bytes:,} bytes: {parts}")
    if report.library is not None:
        console.print(report.library)
    console.print(report.replay)


def print_explanation(explanation: Explanation) -> None:
    """A line for each rule or kernel that declined, whole, so that it can be searched in a pipe."""
    console = open_console()
    for line in explanation.lines():
        console.print(printable(line), soft_wrap=True)


def print_check(report: CheckReport, console: Console) -> None:
    """Stage by stage: score, differences, and the first layer that diverges."""
    rows = [
        (
            stage.name,
            "-" if stage.score is None else report.metric.words(stage.score),
            "-" if stage.changed_predictions is None else f"{stage.changed_predictions:,}",
            f"{stage.differing_codes:,}",
            f"{stage.max_error:.3g}",
        )
        for stage in report.stages
    ]
    headings = ("stage", report.metric.title, "changed predictions", "differing integers", "max error")
    console.print(table(f"{report.samples:,} inputs, each stage against torch eval", headings, rows))
    if len(report.stages[0].outputs) > 1:
        outputs = zip(*(stage.outputs for stage in report.stages), strict=True)
        errors = [
            (
                rows[0].name,
                "x".join(map(str, rows[0].shape)) or "scalar",
                f"{rows[0].largest:.3g}",
                *(f"{row.max_error:.3g}" for row in rows),
            )
            for rows in outputs
        ]
        columns = ("output", "shape", "largest", *(stage.name for stage in report.stages))
        console.print(table("max error of each output", columns, errors, numbers=2))
    if report.chance is not None:
        console.print(f"{report.metric.title} by chance: {report.metric.words(report.chance)}", style="dim")
    console.print(f"largest accumulator seen: {report.largest_accumulator:,} (float32 sums are exact below 16,777,216)")
    for line in report.findings:
        console.print(printable(line), style="bold red" if report.diverged else "")
