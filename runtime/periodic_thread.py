"""A thread that calls a function at a steady pace: for power sensors, and for counters that wrap."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Sampler:
    """Calls `sample(seconds)` every `period_s` seconds, with the time of the call, from `start` until `stop`.

    The first call is at start and the last at stop. What `sample` raises is raised again by `stop`.
    """

    def __init__(self, sample: Callable[[float], None], period_s: float) -> None:
        self._sample = sample
        self._period = period_s
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._error: BaseException | None = None

    def start(self) -> None:
        self._end.clear()
        self._error = None
        self._sample(time.perf_counter())
        self._thread = threading.Thread(target=self._run, name="subbyte-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        self._sample(time.perf_counter())

    def _run(self) -> None:
        due = time.perf_counter() + self._period
        while not self._end.wait(max(0.0, due - time.perf_counter())):
            try:
                self._sample(time.perf_counter())
            except BaseException as error:
                self._error = error
                return
            due = max(due + self._period, time.perf_counter())
