"""Latency to trust: what the C core measures (measurement.py), cold start, energy, golden outputs, the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import EnergyError, UsageError
from subbyte.runtime import energy as energy_meters
from subbyte.runtime.cold_start import ColdStart, measure_cold_start
from subbyte.runtime.energy import Energy, Meter
from subbyte.runtime.energy_model import ModelledEnergy, model_energy
from subbyte.runtime.golden import golden_inputs, has_golden
from subbyte.runtime.host import physical_cpus, why_not_pinned
from subbyte.runtime.machine import Machine
from subbyte.runtime.manifest import OperatorInfo
from subbyte.runtime.measurement import LATENCY, MAX_SAMPLES, OPERATORS
from subbyte.runtime.session import Arrays, Session, load

Float64 = npt.NDArray[np.float64]

WARM_CALLS, WARMUP_SHARE = 3, 0.1  # before interleaved rounds: calls, and a share of their seconds, at least


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call."""

    min: float
    mean: float
    p50: float
    p90: float
    p99: float
    std: float


@dataclass(frozen=True)
class OperatorResult:
    """Where the time goes: one operator, timed in a pass of its own."""

    name: str
    ns: int  # the fastest of the pass
    ns_median: int
    share: float  # of all operators' ns
    kernel: str
    activation: str
    weights: str
    macs: int
    gmac_per_s: float | None  # None where there are no products
    fallback: str | None


@dataclass(frozen=True)
class BenchResult:
    """All that `bench` found, printed as tables; `to_json` uses the keys of the C bench program."""

    name: str
    target: str
    path: str
    bundle_bytes: int
    threads: int
    pinned_cpus: tuple[int, ...]  # empty: not pinned
    warmup: int
    iterations: int
    latency_ms: Latency
    throughput_per_s: float  # 1 / mean latency: one call at a time
    warnings: tuple[str, ...]
    operators: tuple[OperatorResult, ...]
    golden_ok: bool | None  # None: the bundle has no golden outputs
    golden_exact: bool | None
    golden_differing: int | None  # elements of all outputs that are not the same bits
    golden_moved: int | None  # of those: beyond the tolerance, but within what a rounding tie moves them by
    golden_max_error: float | None  # None also where it cannot be measured: NaN
    cold_start: ColdStart | None
    energy_measured: Energy | None
    energy_measured_missing: str  # why there is none
    energy_modelled: ModelledEnergy
    machine: Machine

    def __str__(self) -> str:
        from subbyte.runtime.report import bench_text

        return bench_text(self)

    def to_json(self) -> dict[str, Any]:
        parts = {"energy_measured": self.energy_measured.to_json() if self.energy_measured else None}
        return {**asdict(self), **parts}


def bench(
    bundle: str | os.PathLike[str] | Session,
    *,
    threads: int | None = None,
    warmup: int = 20,
    seconds: float | None = 2.0,
    iterations: int | None = None,
    inputs: Arrays | None = None,
    profile: bool = True,
    cold: bool = True,
    energy: bool = True,
    meter: Meter | str | None = None,
    pin: bool = True,
) -> BenchResult:
    """Measure a bundle or an open session: latency, operators, cold start, energy, golden outputs, machine.

    Runs for `seconds`, or `iterations` calls where given, after at least `warmup` calls. `inputs` default to the golden
    ones, else random. One thread unless told (a session keeps its own). With `energy`, joules are measured where a
    counter can be read, for as long again and an idle window before; modelled energy is always given, apart. `meter`
    is a Meter, or a name: `rapl`, `hwmon`, `zeus`, `csv:PATH`, `none`, or `auto` (the default: RAPL or hwmon, no joules
    where neither can be read). `pin` keeps the process on as many cores as there are threads.

    Raises UsageError for settings that cannot be, EnergyError for a named meter that cannot work here, InputError for
    inputs that do not fit, and what `load` raises.
    """
    if iterations is not None and not 1 <= iterations <= MAX_SAMPLES:
        raise UsageError(f"iterations is {iterations}, expected 1 .. {MAX_SAMPLES}")
    if iterations is None and (seconds is None or not 0 < seconds <= 3600):
        raise UsageError(f"seconds is {seconds}, expected more than 0 and at most 3600, or give iterations")
    if warmup < 0:
        raise UsageError(f"warmup is {warmup}, expected 0 or more calls")
    if isinstance(meter, str):  # made before anything is measured; "auto" may find none, and the result says why
        energy = energy and meter != "none"
        meter = None if meter == "auto" else energy_meters.make_meter(meter)
    settings = _Settings(
        warmup, None if iterations else seconds, iterations, inputs, profile, energy, meter, pin, _allowed_cpus()
    )
    if isinstance(bundle, Session):
        if threads not in (None, bundle.threads):
            raise UsageError(
                f"the session has {bundle.threads} threads, asked for {threads}: load it with threads={threads}"
            )
        with pinned(1 if pin and bundle.threads == 1 else 0) as cpus:  # the workers of more are bound already
            result = _measure(bundle, settings, cpus)
    else:
        count = 1 if threads is None else threads
        with pinned(count if pin else 0) as cpus, load(bundle, threads=count) as session:
            result = _measure(session, settings, cpus)
    return replace(result, cold_start=measure_cold_start(result.path, result.threads)) if cold else result


@dataclass(frozen=True)
class _Settings:
    """What `bench` was asked for; `seconds` is None where `iterations` are given."""

    warmup: int
    seconds: float | None
    iterations: int | None
    inputs: Arrays | None
    profile: bool
    energy: bool
    meter: Meter | None
    pin: bool
    allowed_cpus: Collection[int]  # before this process is pinned


def _measure(session: Session, settings: _Settings, cpus: tuple[int, ...]) -> BenchResult:
    with _on(settings.allowed_cpus):  # the machine is not what this process keeps itself on
        here, disturbances = session.machine()  # before our own load shows
    golden = session.check_golden() if has_golden(session.bundle) else None
    inputs = settings.inputs
    if inputs is None:
        inputs = golden_inputs(session.bundle) if golden else session.random_inputs()
    seconds, iterations = settings.seconds or 0.0, settings.iterations or 0
    what = LATENCY | OPERATORS if settings.profile else LATENCY
    found = session.measure(inputs, what, seconds=seconds, iterations=iterations, warmup=settings.warmup)
    latency = Latency(**found["latency_ms"])
    warnings = [*found["warnings"], *disturbances]
    refused = why_not_pinned() if settings.pin else None
    if refused:
        warnings.append(refused)
    if golden and not golden.ok:
        warnings.insert(0, "the outputs are not the golden ones: these are the figures of a model that is wrong")
    measured, missing = None, "not asked for"
    if settings.energy:
        as_long = settings.seconds or latency.mean * found["iterations"] / 1e3
        measured, missing = _energy(session, inputs, as_long, settings.meter)
    return BenchResult(
        name=session.manifest.name,
        target=session.manifest.target.name,
        path=str(session.path),
        bundle_bytes=session.bundle.nbytes,
        threads=session.threads,
        pinned_cpus=cpus,
        warmup=found["warmup"],
        iterations=found["iterations"],
        latency_ms=latency,
        throughput_per_s=found["throughput_per_s"],
        warnings=tuple(warnings),
        operators=_operators(found["operators"], session.manifest.operators) if settings.profile else (),
        golden_ok=golden.ok if golden else None,
        golden_exact=golden.exact if golden else None,
        golden_differing=golden.differing if golden else None,
        golden_moved=golden.moved if golden else None,
        golden_max_error=golden.max_abs_error if golden else None,
        cold_start=None,
        energy_measured=measured,
        energy_measured_missing=missing,
        energy_modelled=model_energy(session.manifest),
        machine=here,
    )


def interleave(calls: dict[str, Callable[[], object]], seconds: float, turn: int = 1) -> dict[str, Float64]:
    """Time several calls in turn, about `seconds` each, so that disturbances affect all: seconds of each call by name.

    With a `turn` of 1 every call finds the caches as the others leave them. A longer one times so many calls in a row,
    after one that is not timed and takes the caches back: what a model gets that runs again and again.
    Compare medians of the per-round ratios rather than of the times. Raises UsageError for a turn below 1.
    """
    if turn < 1:
        raise UsageError(f"a turn of {turn} calls was asked for, expected at least 1")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        warm, end = 0, time.perf_counter() + WARMUP_SHARE * seconds
        while warm < WARM_CALLS or time.perf_counter() < end:
            call()
            warm += 1
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for name, call in calls.items():
            if turn > 1:
                call()
            for _ in range(turn):
                before = time.perf_counter()
                call()
                samples[name].append(time.perf_counter() - before)
    return {name: np.array(values) for name, values in samples.items()}


def _operators(times: list[dict[str, Any]], operators: Sequence[OperatorInfo]) -> tuple[OperatorResult, ...]:
    total = sum(row["ns"] for row in times) or 1
    return tuple(
        OperatorResult(
            **row,
            share=row["ns"] / total,
            kernel=operator.kernel,
            activation=operator.activation,
            weights=operator.weights,
            macs=operator.macs,
            gmac_per_s=operator.macs / row["ns"] if operator.macs and row["ns"] else None,
            fallback=operator.fallback,
        )
        for row, operator in zip(times, operators, strict=True)
    )


def _energy(session: Session, inputs: Arrays, seconds: float, meter: Meter | None) -> tuple[Energy | None, str]:
    def window(length: float) -> int:
        return int(session.measure(inputs, 0, seconds=length)["iterations"])

    try:
        chosen = meter or energy_meters.find_meter(energy_meters.PROCESSOR_METERS)
        return energy_meters.measure_window(window, seconds, meter=chosen), ""
    except EnergyError as error:
        return None, str(error)


@contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Keep this thread, and those it starts, on `threads` physical cores; with 0, too few, or refused, as it is."""
    cpus = physical_cpus()
    chosen = tuple(cpus[-threads:]) if 0 < threads <= len(cpus) else ()  # the first CPU serves most interrupts
    with _on(chosen) as allowed:
        yield chosen if allowed else ()


@contextmanager
def _on(cpus: Collection[int]) -> Iterator[bool]:
    """Whether this thread, and those it starts, are now kept on these CPUs; none, or refused: they are as before."""
    before = _allowed_cpus()
    try:
        if cpus and before:
            os.sched_setaffinity(0, cpus)
    except OSError:  # `why_not_pinned` tells
        before = ()
    if not cpus or not before:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setaffinity(0, before)


def _allowed_cpus() -> Collection[int]:
    """Those on which this thread may run; () where the system does not tell."""
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return ()
