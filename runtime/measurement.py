"""What `subbyte_measure` of the C core finds about a session: no call of Python's is in its samples."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from subbyte.runtime.native import STOPPED, TICK, MeasureFunctions, MeasureOptions

MAX_SAMPLES = 1_000_000  # SUBBYTE_MOST_SAMPLES
LATENCY, OPERATORS = 1, 2  # SUBBYTE_MEASURE_LATENCY ..


@dataclass(frozen=True)
class OperatorTime:
    """Nanoseconds of one operator over the iterations of a profile."""

    name: str
    ns: int  # the fastest
    ns_median: int


def measure(
    functions: MeasureFunctions,
    run_as: Callable[[Callable[..., int]], None],
    what: int,
    *,
    seconds: float = 0.0,
    iterations: int = 0,
    warmup: int = 0,
) -> dict[str, Any]:
    """The JSON object of `subbyte_measure` (runtime/c/subbyte.h) for `iterations` runs, or as many as `seconds` take.

    `functions` are those of `native.Library.measure`; `run_as` calls what it is given in place of the library's `run`.
    `what` is LATENCY, OPERATORS, both, or 0 for runs alone. Signal handlers run about ten times a second; an exception
    of one ends the measurement.
    """
    failures: list[BaseException] = []
    options = MeasureOptions(iterations=iterations, seconds=seconds, warmup=warmup, what=what)

    def ticks() -> Generator[None, int | None, None]:
        try:
            while True:  # a generator goes on within its `try`, where the exception of a signal handler is caught;
                yield  # one at the first line of a function would be printed by ctypes and lost
                options.go_on = 1
        except GeneratorExit:
            return
        except BaseException as error:
            options.go_on = 0
            failures.append(error)
            yield

    tick = ticks()
    next(tick)
    options.tick = TICK(tick.send)
    run, free = functions
    texts: list[bytes] = []

    def measured(handle: ctypes.c_void_p, first: int, second: int, _hook: object, _user: object) -> int:
        text = ctypes.c_void_p()
        status: int = run(handle, first, second, ctypes.byref(options), ctypes.byref(text))
        if status == STOPPED:
            raise failures[0]
        if text.value:  # freed here: a signal handler may have closed the session, whose library goes with this run
            texts.append(ctypes.string_at(text.value))
            free(text)
        return status

    run_as(measured)
    found: dict[str, Any] = json.loads(texts[0])
    return found
