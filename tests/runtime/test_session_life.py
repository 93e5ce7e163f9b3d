"""Sessions come and go: many at once, closed while others run, dropped, forked; nothing is left behind."""

from __future__ import annotations

import _ctypes
import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import example, reference, tiny_manifest, tiny_members

from subbyte.errors import BundleError, SessionError
from subbyte.runtime import Session, load, native, open_bundle, write_bundle

# ---- many at once ----


def test_many_sessions_and_threads_at_once(bundle_path: Path) -> None:
    wrong: list[str] = []
    sessions = [load(bundle_path, threads=threads) for threads in (1, 1, 2)]

    def work(seed: int) -> None:
        for step in range(60):
            x = example(100 * seed + step)
            session = sessions[(seed + step) % len(sessions)]
            got = session.run(x)
            if not np.array_equal(got["y"], reference(x)["y"]):  # type: ignore[index]
                wrong.append(f"thread {seed} step {step}")

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for session in sessions:
        session.close()
    assert wrong == []


def test_close_while_others_run(bundle_path: Path) -> None:
    session = load(bundle_path, threads=2)
    outcome: list[str] = []

    def work() -> None:
        try:
            while True:
                session.run(example())
        except SessionError as error:
            outcome.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    session.close()
    for worker in workers:
        worker.join()
    assert len(outcome) == 3
    assert all("closed: load the bundle again" in text for text in outcome)


# ---- signal handlers ----


def test_a_run_within_a_run_has_memory_of_its_own(bundle_path: Path) -> None:
    """Traced from inside of a trace: a second walk over the same arena would change the codes of the outer one."""
    found: dict[str, np.ndarray] = {}
    inner: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []

    with load(bundle_path, threads=2) as session:

        def look(index: int, values: dict[str, np.ndarray]) -> None:
            x = example(index + 1)
            session.watch(x, lambda _, deeper: inner.append((deeper, reference(x))))
            found.update(values)

        session.watch(example(0), look)
        after = session.run(example(5))
    want = reference(example(0))
    assert {name: np.array_equal(value, want[name]) for name, value in found.items()} == dict.fromkeys(want, True)
    assert len(inner) == 16
    assert all(np.array_equal(value, right[name]) for values, right in inner for name, value in values.items())
    np.testing.assert_array_equal(after["y"], reference(example(5))["y"])  # type: ignore[index]


def test_close_within_a_run_within_a_run(bundle_path: Path) -> None:
    with load(bundle_path, threads=2) as session:

        def close(_index: int, _values: dict[str, np.ndarray]) -> None:
            session.close()

        def look(index: int, _values: dict[str, np.ndarray]) -> None:
            if not session.closed:
                np.testing.assert_array_equal(session.watch(example(1), close)[0], reference(example(1))["y"])

        np.testing.assert_array_equal(session.watch(example(3), look)[0], reference(example(3))["y"])


def test_a_failure_within_a_run_is_not_taken_for_the_outer_one(bundle_path: Path) -> None:
    bad = example()
    bad[0, 1, 2, 3] = 1234
    with load(bundle_path, threads=2) as session:

        def look(index: int, _values: dict[str, np.ndarray]) -> None:
            with pytest.raises(SessionError, match="operator 'quantize': a kernel failed"):
                session.run(bad)

        outputs = session.watch(example(3), look)
        np.testing.assert_array_equal(outputs[0], reference(example(3))["y"])


@pytest.mark.parametrize("threads", [1, 2])
def test_close_within_a_run_takes_effect_on_its_way_out(bundle_path: Path, threads: int) -> None:
    load(bundle_path, threads=threads).close()
    before = resources()
    session = load(bundle_path, threads=threads)
    seen: list[int] = []

    def look(index: int, _values: dict[str, np.ndarray]) -> None:
        seen.append(index)
        session.close()
        assert session.closed
        with pytest.raises(SessionError, match="closed"):
            session.run(example())

    outputs = session.watch(example(3), look)
    assert seen == [0, 1, 2, 3]
    np.testing.assert_array_equal(outputs[0], reference(example(3))["y"])
    gc.collect()
    assert resources() == before


SERVICE = """
import signal, sys, numpy
sys.path.insert(0, sys.argv[2])
from tiny_bundle import example, reference
from subbyte.errors import SessionError
from subbyte.runtime import load

threads, what = int(sys.argv[3]), sys.argv[4]
examples = [example(seed) for seed in range(8)]
wanted = [reference(x) for x in examples]
handled = 0

def right(got, want):
    assert all(numpy.array_equal(got[name], want[name]) for name in got), (got, want)

class Stop(BaseException):
    pass

def handler(*_):
    global handled
    handled += 1
    if what != "close" and not session.closed:
        right(session.run(examples[handled % 8]), wanted[handled % 8])
    if what != "run":
        session.close()
        raise Stop

# raised in a __del__, an exception is printed and lost: the session is closed all the same
sys.unraisablehook = lambda lost: None if lost.exc_type is Stop else sys.__unraisablehook__(lost)
signal.signal(signal.SIGALRM, handler)
session = load(sys.argv[1], threads=threads)
call = 0

# A function of its own: what a signal raises as a loop jumps back, Python 3.13 does not catch in the loop's function.
def serve():
    global session, call
    while handled < 100:
        if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            session = load(sys.argv[1], threads=threads) if session.closed else session
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.00003 * (call % 41))
        call += 1
        right(session.run(examples[call % 8]), wanted[call % 8])

while handled < 100:
    try:
        serve()
    except (Stop, SessionError) as error:
        assert session.closed, error
signal.signal(signal.SIGALRM, signal.SIG_IGN)
session.close()
print("handled", handled)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", ["run", "close", "run and close"])
def test_signal_handlers_use_the_session_that_they_interrupt(bundle_path: Path, threads: int, what: str) -> None:
    command = [sys.executable, "-c", SERVICE, str(bundle_path), str(Path(__file__).parent), str(threads), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "handled 100\n"


def test_an_operator_that_was_not_watched_is_an_error(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes swallows what a signal handler raises before the first line of a hook: the hook then was not called."""
    hook = native.HOOK
    with load(bundle_path, threads=1) as session:
        monkeypatch.setattr(native, "HOOK", lambda call: hook(lambda *of: None if of[1] == 1 else call(*of)))
        with pytest.raises(SessionError, match="raised an exception while an operator of 'tiny' was watched"):
            session.trace(example())
        np.testing.assert_array_equal(session.run(example())["y"], reference(example())["y"])  # type: ignore[index]


# ---- life ----


def test_use_after_close(bundle_path: Path) -> None:
    session = load(bundle_path, threads=2)
    call = session.bind(example(), session.empty_outputs())
    session.close()
    session.close()
    assert session.closed
    uses = [lambda: session.run(example()), lambda: session.trace(example()), lambda: session.profile(example()), call]
    for use in uses:
        with pytest.raises(SessionError, match="closed"):
            use()


def resources() -> tuple[int, int, int]:
    """Open descriptors, threads, and mapped libraries of ours."""
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps.count("subbyte")


def resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_sessions_leave_nothing_behind(bundle_path: Path) -> None:
    def use() -> None:
        with load(bundle_path, threads=3) as session:
            session.run(example())
            session.trace(example())

    for _ in range(20):
        use()
    gc.collect()
    before, memory = resources(), resident()
    for _ in range(200):
        use()
    gc.collect()
    assert resources() == before
    assert resident() - memory < 4 << 20


def test_a_dropped_session_is_released(bundle_path: Path) -> None:
    load(bundle_path, threads=2).run(example())
    gc.collect()
    before = resources()
    for _ in range(10):
        load(bundle_path, threads=2).run(example())
    assert resources() == before  # at once: nothing is in a cycle


def test_a_failed_load_leaves_nothing_behind(tmp_path: Path, library: bytes) -> None:
    wrong = {**tiny_manifest(), "name": "tiny", "workspace_bytes": 128}
    path = write_bundle(tmp_path / "w.subbyte", wrong, tiny_members(library))
    before = resources()
    for _ in range(5):
        with pytest.raises(BundleError, match="workspace_bytes is 64, not 128"):
            load(path, threads=2)
    gc.collect()
    assert resources() == before


FEW_DESCRIPTORS = """
import os, resource, sys
from subbyte.errors import SessionError
from subbyte.runtime import load
sessions, held = [load(sys.argv[1], threads=1)], []
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
refused = 0
while True:  # with one descriptor more each time
    try:
        sessions.append(load(sys.argv[1], threads=1))
        break
    except SessionError as error:
        assert "too many open files" in str(error) and "ulimit -n" in str(error), error
    refused += 1
    os.close(held.pop())
print(refused)
"""


def test_without_descriptors_the_bundle_is_not_to_blame(bundle_path: Path, tmp_path: Path) -> None:
    """A service puts a bundle aside that is damaged, which this one is not."""
    words = [sys.executable, "-c", FEW_DESCRIPTORS, str(bundle_path)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 2
    assert {path.suffix for path in tmp_path.iterdir()} <= {".subbyte"}  # loading writes no file


def test_runs_do_not_grow_memory(bundle_path: Path) -> None:
    with load(bundle_path, threads=2) as session:
        x, outputs = example(), session.empty_outputs()
        for _ in range(2000):
            session.run_into(x, outputs)
        memory = resident()
        for _ in range(10_000):
            session.run_into(x, outputs)
        assert resident() - memory < 1 << 20


def test_a_library_that_stays_loaded_does_not_hide_the_next(library: bytes) -> None:
    """The loader knows libraries by path, and numbers of descriptors come again: our paths must not."""
    first, close_first = native._load(library)
    close_first()  # its descriptor is free, the library is still loaded
    second, close_second = native._load(library + b"other")
    assert first._handle != second._handle
    close_second()
    for dll in (first, second):
        _ctypes.dlclose(dll._handle)


def test_a_forked_child_is_told(bundle_path: Path) -> None:
    code = """
import os, sys, numpy
from subbyte.errors import SessionError
from subbyte.runtime import load
session = load(sys.argv[1], threads=2)
x = numpy.zeros((1, 3, 4, 4), numpy.float32)
session.run(x)
child = os.fork()
if child == 0:
    try:
        session.run(x)
    except SessionError as error:
        session.close()
        with load(sys.argv[1], threads=2) as again:
            again.run(x)
        os._exit(0 if "fork" in str(error) else 2)
    os._exit(3)
_, status = os.waitpid(child, 0)
session.run(x)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    assert subprocess.run([sys.executable, "-c", code, str(bundle_path)], check=False, timeout=600).returncode == 0


@pytest.mark.parametrize("made_again", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize(("owner", "error"), [(load, SessionError), (open_bundle, BundleError)])
def test_what_holds_a_bundle_is_not_copied(
    bundle_path: Path, owner: Callable[[Path], Any], error: type[Exception], made_again: Callable[[Any], object]
) -> None:
    """A copy freed the same C session, or closed the same descriptor, a second time."""
    with owner(bundle_path) as original:
        with pytest.raises(error, match=f"{bundle_path}.*cannot be copied|cannot be copied.*{bundle_path}"):
            made_again(original)
        gc.collect()
        opened = original.bundle if isinstance(original, Session) else original
        assert len(opened.read("weights.bin")) == opened.manifest.weights_bytes


def test_exit_without_close_is_quiet(bundle_path: Path) -> None:
    code = "import sys; from subbyte.runtime import load; session = load(sys.argv[1], threads=2); print(session)"
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code, str(bundle_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Session('tiny', target 'host', 2 threads)\n"
