"""Ctrl-C during a run: the step in progress is completed and the state saved; a second one stops at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


class Interrupt:
    """Answers SIGINT: while `deferring`, the first one is remembered as `asked`; else the handler before it answers."""

    def __init__(self, before: Handler) -> None:
        self.before = before
        self.deferring = self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.deferring or self.asked:
            self.before(number, frame)
            return
        self.asked = True
        print("stopping after this step, to save the state; Ctrl-C again stops at once", file=sys.stderr)

    def stop(self) -> None:
        """Do what was deferred: raises what the handler before it raises, as a rule KeyboardInterrupt."""
        self.before(signal.SIGINT, None)
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """An `Interrupt` that answers SIGINT within the context, where this is the main thread and it is not ignored.

    Lightning answers a KeyboardInterrupt by ignoring further ones and leaving the process: it is raised again here, and
    the handler that was there is put back.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    interrupt = Interrupt(handler if callable(handler) else signal.default_int_handler)
    if callable(handler):
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
