"""A bundle that changes under a running session: the same numbers, or a BundleError; never others, never a signal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import example, npy, reference, tiny_manifest, tiny_members, weights

from subbyte.errors import BundleError
from subbyte.runtime import Session, bundle, host, load, open_bundle, write_bundle

OTHER = weights().replace(np.float32(3).tobytes(), np.float32(5).tobytes())


def other_bundle(path: Path, library: bytes) -> Path:
    """A good bundle of the same sizes, with another scale in the last channel."""
    return write_bundle(path, tiny_manifest(), {**tiny_members(library), "weights.bin": OTHER})


def truncate(path: Path, other: Path) -> None:
    os.truncate(path, 1000)


def cut_in_the_weights(path: Path, other: Path) -> None:
    with open_bundle(path) as opened:
        at = opened.entries["weights.bin"].offset + 64
    os.truncate(path, at)


def overwrite(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())  # as cp does: truncated, then written, the same inode


def overwrite_keeping_the_time(path: Path, other: Path) -> None:
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


IN_PLACE = (truncate, cut_in_the_weights, overwrite, overwrite_keeping_the_time)


def rename_over(path: Path, other: Path) -> None:
    os.replace(other, path)


def unlink(path: Path, other: Path) -> None:
    path.unlink()


def touch(path: Path, other: Path) -> None:
    os.utime(path, (1, 1))
    path.chmod(0o400)


def write_the_same(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes())


HARMLESS = (rename_over, unlink, touch, write_the_same)


def run(session: Session, seed: int) -> None:
    for _ in range(3):
        got, want = session.run(example(seed)), reference(example(seed))
        np.testing.assert_array_equal(got["y"], want["y"])  # type: ignore[index]


@pytest.mark.parametrize("change", [*IN_PLACE, *HARMLESS], ids=lambda f: f.__name__)
def test_weights_in_memory_stay_as_they_were(bundle_path: Path, library: bytes, change: Callable[..., None]) -> None:
    other = other_bundle(bundle_path.with_name("other.subbyte"), library)
    with load(bundle_path, threads=2) as session:
        assert session.bundle.holds_weights
        run(session, 1)
        change(bundle_path, other)
        run(session, 2)


def test_a_library_that_changes_while_it_is_loaded_is_refused(
    bundle_path: Path, library: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its hash was checked, before it is read for the loader."""
    other = write_bundle(bundle_path.with_name("other"), tiny_manifest(), tiny_members(library[:-1] + b"!"))
    monkeypatch.setattr(host, "check_target", lambda _: overwrite(bundle_path, other))
    with pytest.raises(BundleError, match=rf"^bundle '{bundle_path}': member 'library\.so' changed"):
        load(bundle_path)


@pytest.mark.parametrize("change", IN_PLACE, ids=lambda f: f.__name__)
def test_mapped_weights_that_change_are_refused(
    bundle_path: Path, library: bytes, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MAX_HELD_BYTES", 127)
    other = other_bundle(bundle_path.with_name("other.subbyte"), library)
    with load(bundle_path, threads=2) as session:
        assert not session.bundle.holds_weights
        run(session, 1)
        change(bundle_path, other)
        for _ in range(2):
            with pytest.raises(BundleError, match=r"'weights\.bin' changed .* overwritten in place.*renaming"):
                session.run(example())
            with pytest.raises(BundleError, match="overwritten in place"):
                session.trace(example())


@pytest.mark.parametrize("change", HARMLESS, ids=lambda f: f.__name__)
def test_mapped_weights_that_stay_run_on(
    bundle_path: Path, library: bytes, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MAX_HELD_BYTES", 0)
    other = other_bundle(bundle_path.with_name("other.subbyte"), library)
    with load(bundle_path, threads=2) as session:
        run(session, 1)
        change(bundle_path, other)
        run(session, 2)


def test_while_nothing_changes_nothing_is_hashed_again(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_HELD_BYTES", 0)
    with load(bundle_path, threads=1) as session:
        monkeypatch.delattr(os, "pread")
        run(session, 1)
        touch(bundle_path, bundle_path)
        with pytest.raises(AttributeError, match="pread"):
            session.run(example())


@pytest.mark.parametrize("limit", [0, 64 << 20])
def test_weights_lie_on_a_page_and_are_the_hashed_ones(
    bundle_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MAX_HELD_BYTES", limit)
    with load(bundle_path, threads=1) as session, open("/proc/self/maps") as maps:
        address = np.frombuffer(session.bundle.weights(), np.uint8).ctypes.data
        assert address % bundle.ALIGNMENT == 0
        assert session.bundle.weights() == weights()
        assert session.bundle.weights().readonly
        spans = [line.split()[0].split("-") for line in maps if str(bundle_path) in line]
        mapped = any(int(first, 16) <= address < int(last, 16) for first, last in spans)
        assert mapped is (limit == 0)


@pytest.mark.parametrize("change", IN_PLACE[:3], ids=lambda f: f.__name__)
def test_members_are_read_from_a_file_that_was_cut_or_overwritten(
    bundle_path: Path, library: bytes, change: Callable[..., None]
) -> None:
    wanted = {**tiny_members(library), "golden/input_0.npy": npy(example(9)), "weights.bin": OTHER}
    other = write_bundle(bundle_path.with_name("other.subbyte"), tiny_manifest(), wanted)
    with open_bundle(bundle_path) as opened:
        change(bundle_path, other)
        with pytest.raises(BundleError, match=r"'weights\.bin' changed after it was opened"):
            opened.read("weights.bin")
        if change is not overwrite:
            with pytest.raises(BundleError, match=r"cannot be mapped: .*subbyte compile"):
                opened.map("weights.bin")


def test_a_bundle_is_overwritten_while_it_is_loaded(bundle_path: Path, library: bytes) -> None:
    """Each load gives the one model or the other, or a BundleError: in a process of its own, which SIGBUS would end."""
    other = other_bundle(bundle_path.with_name("other.subbyte"), library)
    first = shutil.copy(bundle_path, bundle_path.with_name("first.subbyte"))
    code = """
import sys, threading, numpy
sys.path.insert(0, sys.argv[4])
from tiny_bundle import example, reference
from subbyte.errors import BundleError
from subbyte.runtime import load
path, files = sys.argv[1], [open(name, "rb").read() for name in sys.argv[2:4]]
done = False
def write():
    step = 0
    while not done:
        step += 1
        with open(path, "wb") as file:
            file.write(files[step % 2][: 3000 * (step % 3)] if step % 5 == 0 else files[step % 2])
writer = threading.Thread(target=write)
writer.start()
x = example(1)
want = reference(x)["y"]
other = want.copy()
other[:, 2] *= numpy.float32(5) / numpy.float32(3)
found = {"first": 0, "other": 0, "refused": 0, "wrong": 0}
try:
    for _ in range(300):
        try:
            with load(path, threads=1) as session:
                y = session.run(x)["y"]
            same = [numpy.array_equal(y, want), numpy.allclose(y, other, rtol=1e-6)]
            found["first" if same[0] else "other" if same[1] else "wrong"] += 1
        except BundleError:
            found["refused"] += 1
finally:
    done = True
    writer.join()
print(found["wrong"], sum(found.values()))
"""
    command = [sys.executable, "-c", code, str(bundle_path), str(first), str(other), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "0 300\n")
