"""Results as rich tables (`to_json` of a result is plain data). Measured and modelled never share a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from subbyte.runtime.printable import CELL, SENTENCE, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from subbyte.runtime.benchmark import BenchResult
    from subbyte.runtime.bundle import Bundle

MAX_OPERATORS = 60  # rows of a table; the rest is in the JSON


def print_bench(result: BenchResult, console: Console) -> None:
    """Print all that `bench` found: latency, operators, cold start, energy, machine, warnings."""
    latency = result.latency_ms
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    pinned = f", on CPU {', '.join(map(str, result.pinned_cpus))}" if result.pinned_cpus else ""
    console.print(
        f"[bold]{_safe(result.name)}[/] for {_safe(result.target)}, {threads}{pinned}, {_size(result.bundle_bytes)}"
    )
    table = _table(f"latency, ms ({result.iterations} calls after {result.warmup} to warm up)")
    for heading in ("min", "mean", "p50", "p90", "p99", "std", "calls/s"):
        table.add_column(heading, justify="right")
    values = (latency.min, latency.mean, latency.p50, latency.p90, latency.p99, latency.std)
    table.add_row(*(_milliseconds(value) for value in values), f"{result.throughput_per_s:,.0f}")
    console.print(table)
    if result.operators:
        console.print(_operator_table(result))
    _print_cold_start(result, console)
    _print_energy(result, console)
    machine = result.machine
    clock = f", {machine.mhz:.0f} MHz now" if machine.mhz else ""
    name = _safe(machine.cpu or machine.architecture)
    console.print(
        f"machine: {name}, {machine.usable_cores} of {machine.physical_cores} cores{clock}, load "
        f"{'?' if machine.load_1min is None else machine.load_1min}, {_safe(machine.system)}"
        f"{', virtual' if machine.virtualised else ''}, Python {machine.python}, NumPy {machine.numpy}"
    )
    golden = {
        None: "none in the bundle",
        True: "equal" if result.golden_exact else "within tolerance",
        False: "DIFFERENT",
    }
    console.print(f"golden outputs: {golden[result.golden_ok]}")
    for warning in result.warnings:
        console.print(f"[yellow]warning:[/] {_safe(warning)}")


def bench_text(result: BenchResult) -> str:
    """What `print_bench` prints, as plain text of 120 columns."""
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    print_bench(result, Console(file=text, width=120, no_color=True, emoji=False, highlight=False))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _operator_table(result: BenchResult) -> Table:
    table = _table("operators, timed in a pass of their own, slowest first")
    for heading in ("operator", "kernel", "activation x weights"):
        table.add_column(heading, overflow="fold")
    for heading in ("us", "share", "MMAC", "GMAC/s"):
        table.add_column(heading, justify="right")
    rows = sorted(result.operators, key=lambda row: -row.ns)
    for row in rows[:MAX_OPERATORS]:
        name = _safe(row.name, CELL) + (" [yellow](float fallback)[/]" if row.fallback else "")
        products = (f"{row.macs / 1e6:.3f}", f"{row.gmac_per_s:.1f}") if row.gmac_per_s else ("", "")
        formats = _safe(f"{row.activation} x {row.weights}")
        table.add_row(name, _safe(row.kernel), formats, f"{row.ns / 1e3:.1f}", f"{row.share:.1%}", *products)
    if len(rows) > MAX_OPERATORS:
        table.add_row(f"... and {len(rows) - MAX_OPERATORS} more (see the JSON)")
    return table


def _print_cold_start(result: BenchResult, console: Console) -> None:
    cold = result.cold_start
    if cold is None:
        return
    resident = "" if cold.resident_bytes is None else f"; resident {_size(cold.resident_bytes)}"
    console.print(
        f"cold start: {cold.total_ms:.0f} ms (Python {cold.python_ms:.0f}, import {cold.import_ms:.0f}, load "
        f"{cold.load_ms:.0f}, first result {cold.first_result_ms:.1f}), median of {cold.runs}{resident}"
    )


def _print_energy(result: BenchResult, console: Console) -> None:
    measured = result.energy_measured
    if measured is not None:
        console.print(
            f"energy, measured ({_safe(measured.source)}, {measured.window_s:.1f} s): "
            f"{1e3 * measured.joules_per_call_gross:.4g} mJ a call gross, {1e3 * measured.joules_per_call_net:.4g} mJ "
            f"net of {measured.idle_w:.1f} W idle"
        )
    else:
        console.print(f"energy, measured: none. {_safe(result.energy_measured_missing)}")
    modelled = result.energy_modelled
    console.print(
        f"energy, modelled (not measured; {_safe(modelled.source)}): {modelled.modelled_pj / 1e6:.4g} uJ a call on a "
        f"45 nm ASIC, weights in {modelled.weights_memory}, activations in {modelled.activations_memory}"
    )


def print_energy_model(result: BenchResult, console: Console) -> None:
    """Print the modelled energy of every operator, the table it rests on, and its assumptions."""
    modelled = result.energy_modelled
    table = _table("modelled energy, nJ a call (not measured)")
    table.add_column("operator", overflow="fold")
    table.add_column("arithmetic")
    table.add_column("compute", justify="right")
    table.add_column("memory", justify="right")
    for row in modelled.operators:
        cells = (f"{row.modelled_compute_pj / 1e3:.3f}", f"{row.modelled_memory_pj / 1e3:.3f}")
        table.add_row(_safe(row.name, CELL), row.arithmetic, *cells)
    console.print(table)
    figures = [f"{name} {pj:g}" for name, pj in modelled.operations_pj.items()]
    console.print(f"pJ per operation: {', '.join(figures)}")
    figures = [f"{name} {pj:g}" for name, pj in modelled.memories_pj_per_64_bits.items()]
    console.print(f"pJ for 64 bits moved: {', '.join(figures)}")
    for assumption in modelled.assumptions:
        console.print(f"- {assumption}")


def meaning(metadata: object) -> str:
    """What the first output means, by the metadata of an ONNX file: task, data, class names; else empty."""
    if not isinstance(metadata, dict) or "subbyte.task" not in metadata:
        return ""
    known = {name: str(metadata[f"subbyte.{name}"]) for name in _MEANINGS if f"subbyte.{name}" in metadata}
    return ", ".join(f"{_MEANINGS[name]} {text}" for name, text in known.items())


_MEANINGS = {"task": "task", "task_options": "of options", "data": "data", "class_names": "outputs"}


def print_manifest(bundle: Bundle, console: Console) -> None:
    """Print what a bundle holds: target, inputs, outputs, operators, sizes."""
    manifest = bundle.manifest
    target = manifest.target
    console.print(f"[bold]{_safe(manifest.name)}[/], {_size(bundle.nbytes)}: {_safe(str(bundle.path))}")
    needs = f", needs {', '.join(target.features)}" if target.features else ""
    console.print(f"target {_safe(target.name)}: {_safe(target.triple)}, {target.emitter}{_safe(needs)}")
    for side, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            console.print(f"{side} {_safe(tensor.name)}: {tensor.dtype} {_safe(str(list(tensor.shape)))}")
    if says := meaning(manifest.source.get("metadata")):
        console.print(_safe(says))
    console.print(
        f"weights {_size(manifest.weights_bytes)}, arena {_size(manifest.arena_bytes)}, workspace "
        f"{_size(manifest.workspace_bytes)} a thread, {manifest.macs / 1e6:.3f} MMAC a call"
    )
    made = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    console.print(f"made with {_safe(made)}; from {_safe(', '.join(_short(manifest.source)))}")
    table = _table("operators")
    for heading in ("operator", "kind", "kernel", "activation x weights"):
        table.add_column(heading, overflow="fold")
    for heading in ("bits/weight", "MMAC", "weights", "float fallback"):
        table.add_column(heading, justify="left" if heading == "float fallback" else "right", overflow="fold")
    for row in manifest.operators:
        weights = (
            (f"{row.bits_per_weight:.2f}", f"{row.macs / 1e6:.3f}", _size(row.weight_bytes))
            if row.macs
            else ("", "", "")
        )
        formats = f"{row.activation} x {row.weights}" if row.weights != "-" else row.activation
        cells = (row.name, row.kind, row.kernel, formats, *weights, row.fallback or "")
        table.add_row(*(_safe(cell, CELL) for cell in cells))
    console.print(table)
    members = _table("members")
    members.add_column("member")
    members.add_column("bytes", justify="right")
    for name, entry in bundle.entries.items():
        members.add_row(name, f"{entry.size:,}")
    console.print(members)


# ---- words ----


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def _safe(text: str, longest: int = SENTENCE) -> str:
    """Text from a file: without rich markup, too."""
    from rich.markup import escape

    return escape(printable(text, longest))


def _short(source: Mapping[str, Any]) -> list[str]:
    """Names and values that fit on a line; those of nested objects too."""
    found = []
    for key, value in source.items():
        if isinstance(value, Mapping):
            found += _short(value)
        elif isinstance(value, (str, int, float)) and len(str(value)) <= 40:
            found.append(f"{key.removeprefix('subbyte.')} {value}")
    return found[:20]


def _milliseconds(value: float) -> str:
    return f"{value:.4f}" if value < 10 else f"{value:.2f}"


def _size(nbytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}" if unit != "B" else f"{nbytes:.0f} B"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"
