"""A service under trouble: 64 sessions on 8 threads, signals, bundles that are replaced and overwritten while they run.

    make soak                                      # a million calls
    python tests/runtime/soak.py --calls 20000     # as the suite does

Every output is compared. After each tenth of the calls, what the process holds is written down: descriptors, threads
and maps must not change, memory must not grow. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tiny_bundle import SCALES, build_library, example, reference, tiny_manifest, tiny_members, weights

from subbyte.errors import BundleError, SessionError
from subbyte.runtime import Session, bundle, load, write_bundle

SESSIONS, WORKERS, PHASES = 64, 8, 10
SIGNAL_SECONDS = 0.1
MOST_HANDLERS = 8  # that signals nest on a loaded machine, where a handler takes longer than the next one lets it
MOST_GROWTH = 8 << 20  # bytes of memory, over all calls: what the allocators keep for themselves
LAST_SCALES = (3.0, 5.0, -7.0)  # of the models, which differ in their last channel
EXAMPLES = [example(seed) for seed in range(8)]


@dataclass
class Service:
    """One bundle, the session on it, and which model that session computes."""

    path: Path
    threads: int
    held: bool  # weights in memory; else mapped, and nobody may run while they are overwritten
    model: int = 0
    session: Session | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    changing: bool = False


@dataclass
class Holdings:
    """What the process holds."""

    descriptors: int
    threads: int
    maps: int
    resident: int  # bytes

    def same_as(self, other: Holdings) -> bool:
        """Alike in all but memory."""
        mine, theirs = ((h.descriptors, h.threads, h.maps) for h in (self, other))
        return mine == theirs

    @staticmethod
    def now() -> Holdings:
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        names = (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
        return Holdings(*names, maps.count("subbyte"), resident)


class Soak:
    """The services and what was found; `run` is the whole of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        library = build_library(folder)
        self.files: list[bytes] = []
        self.wanted: list[list[dict[str, np.ndarray]]] = []
        for last in LAST_SCALES:
            scales = weights().replace(SCALES[2:].tobytes(), np.float32(last).tobytes())
            members = {**tiny_members(library), "weights.bin": scales}
            self.files.append(write_bundle(folder / "model.subbyte", tiny_manifest(), members).read_bytes())
            self.wanted.append([self._expected(x, last) for x in EXAMPLES])
        self.services = [Service(folder / f"{i}.subbyte", 1 + i % 2, i % 4 < 3) for i in range(SESSIONS)]
        self.loading = threading.RLock()
        self.settling = False
        self.handlers = 0
        self.seed = seed
        self.wrong: list[str] = []
        self.seen: collections.Counter[str] = collections.Counter()
        self.holdings: list[Holdings] = []

    @staticmethod
    def _expected(x: np.ndarray, last: float) -> dict[str, np.ndarray]:
        want = reference(x)
        y = want["y"].copy()
        y[:, 2] = want["codes"][:, 2].astype(np.float32) * np.float32(last)
        return {"y": y, "count": want["count"]}

    def run(self, calls: int) -> None:
        """Make so many calls, the main thread among the workers, interrupted every SIGNAL_SECONDS."""
        for service in self.services:
            self._replace(service, 0)
        drawn = random.Random(self.seed)
        before = signal.signal(signal.SIGALRM, lambda *_: self._interrupted(drawn))
        signal.setitimer(signal.ITIMER_REAL, SIGNAL_SECONDS, SIGNAL_SECONDS)
        try:
            for phase in range(PHASES):
                each = calls // PHASES // WORKERS
                workers = [threading.Thread(target=self._work, args=(phase, w, each)) for w in range(1, WORKERS)]
                for worker in workers:
                    worker.start()
                self._work(phase, 0, each)
                for worker in workers:
                    worker.join()
                self._settle()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            for service in self.services:
                if service.session is not None:
                    service.session.close()

    def _settle(self) -> None:
        """Write down what the process holds with a session on every bundle, while no signal handler closes one."""
        self.settling = True
        for service in self.services:
            if service.session is None or service.session.closed:
                self._replace(service, service.model)
        self.holdings.append(Holdings.now())
        self.settling = False

    @property
    def is_flat(self) -> bool:
        """Whether nothing grew once every thread and every path had been there."""
        first, *later = self.holdings[2:]
        same = all(h.same_as(first) for h in later)
        return same and max(h.resident for h in later) - first.resident < MOST_GROWTH

    def _work(self, phase: int, worker: int, calls: int) -> None:
        drawn = random.Random(f"{self.seed} {phase} {worker}")
        try:
            for _ in range(calls):
                service = drawn.choice(self.services)
                self._call(service, drawn)
                what = drawn.random()
                if what < 0.01:
                    self._guarded(service, self._replace, drawn.randrange(len(self.files)))
                elif what < 0.03:
                    self._guarded(service, self._overwrite, drawn)
        except BaseException as error:
            self.wrong.append(f"phase {phase}, worker {worker}: {error!r}")
            raise

    def _interrupted(self, drawn: random.Random) -> None:
        """What the handler does: runs some session, and closes another, whatever the main thread is doing with them."""
        if self.settling or self.handlers == MOST_HANDLERS:
            return
        self.handlers += 1
        try:
            self.seen["signals"] += 1
            service = drawn.choice(self.services)
            if service.lock.acquire(blocking=False):  # who holds it may wait for a load that this signal interrupted
                try:
                    self._call(service, drawn)
                finally:
                    service.lock.release()
            session = drawn.choice(self.services).session
            if session is not None:
                session.close()
        finally:
            self.handlers -= 1

    def _call(self, service: Service, drawn: random.Random) -> None:
        """One run and its comparison. A session that is closed meanwhile is loaded again."""
        with service.lock:
            if service.changing:  # a signal came in the middle of a change, on its own thread
                return
            session, model, index = service.session, service.model, drawn.randrange(len(EXAMPLES))
            try:
                got: Any = session.run(EXAMPLES[index]) if session is not None else {}
            except SessionError:
                if session is None or not session.closed:
                    raise
                self.seen["closed"] += 1
                self._guarded(service, self._replace, model)
                return
            want = self.wanted[model][index]
            self.seen["calls"] += 1
            if list(got) != list(want) or not all(np.array_equal(got[name], want[name]) for name in want):
                self.wrong.append(f"model {model}, example {index}: {got}")

    def _guarded(self, service: Service, change: Callable[[Service, Any], None], what: Any) -> None:
        """Change the service while nobody runs on it."""
        with service.lock:
            if service.changing:
                return
            service.changing = True
            try:
                change(service, what)
            finally:
                service.changing = False

    def _replace(self, service: Service, model: int) -> None:
        """Another bundle is renamed over this one; the old session runs on until the new one is there."""
        fresh = service.path.with_suffix(".new")
        fresh.write_bytes(self.files[model])
        os.replace(fresh, service.path)
        old, service.session, service.model = service.session, self._load(service), model
        if old is not None:
            old.close()
        self.seen["replaced"] += 1

    def _overwrite(self, service: Service, drawn: random.Random) -> None:
        """The file is overwritten in place, or cut: numbers stay where weights are in memory, else a run is refused."""
        other = (service.model + drawn.choice((1, 2))) % len(self.files)
        service.path.write_bytes(self.files[other][: drawn.choice((None, 0, 1000, 20_000))])
        session, index = service.session, drawn.randrange(len(EXAMPLES))
        assert session is not None
        self.seen["overwritten"] += 1
        try:
            got: Any = session.run(EXAMPLES[index])
        except BundleError:
            self.seen["refused"] += 1
            if service.held:
                self.wrong.append("weights in memory were refused")
            self._replace(service, other)
        except SessionError:
            if not session.closed:
                raise
        else:
            if not service.held or not np.array_equal(got["y"], self.wanted[service.model][index]["y"]):
                self.wrong.append(f"overwritten: {'other numbers' if service.held else 'not refused'}")

    def _load(self, service: Service) -> Session:
        with self.loading:
            before, bundle.MAX_HELD_BYTES = bundle.MAX_HELD_BYTES, 64 << 20 if service.held else 0
            try:
                return load(service.path, threads=service.threads)
            finally:
                bundle.MAX_HELD_BYTES = before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="subbyte-soak-"))
    try:
        soak = Soak(folder, options.seed)
        soak.run(options.calls)
    finally:
        shutil.rmtree(folder)
    for holdings in soak.holdings:
        print(holdings)
    print(*soak.wrong[:20], json.dumps(dict(sorted(soak.seen.items()))), sep="\n")
    return int(bool(soak.wrong) or not soak.is_flat)


if __name__ == "__main__":
    sys.exit(main())
