"""Runs cases of a kind in a child process, and keeps what came of each finished piece in benchmarks/results/fuzz.json.

    make fuzz                                             # goes on until every kind has the cases that are owed
    python tests/fuzz/pieces.py --seconds 600             # begins no piece after ten minutes
    python tests/fuzz/pieces.py bundle npy --sample 3     # these kinds alone, other cases
    python tests/fuzz/pieces.py bundle --case 1234        # one case again, in this process, to debug it

Case i of sample N of a kind is always the same. A piece that is saved is not run again, but one with a fault is. Exits
with 1 when there is a fault.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kinds import FAULTS, KINDS, TESTS, Fault, Kind, find_neighbours

from subbyte.errors import SubbyteError

RESULTS = TESTS.parent / "benchmarks" / "results" / "fuzz.json"
SILENT = 10.0  # a case that neither ends nor uses the CPU is waited for this many times its seconds


@dataclass
class Piece:
    """Cases `first` .. `first + count` of a sample: how many of each word, and a line for each fault."""

    sample: int
    first: int
    count: int
    words: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[tuple[int, str, str]] = field(default_factory=list)  # case, word, line
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As it is saved."""
        row = {"sample": self.sample, "first": self.first, "count": self.count, "seconds": round(self.seconds, 1)}
        return {**row, "words": dict(sorted(self.words.items())), "faults": [list(fault) for fault in self.faults]}


def generator(kind: Kind, sample: int, index: int) -> np.random.Generator:
    """The random numbers of one case."""
    return np.random.default_rng([zlib.crc32(kind.name.encode()), sample, index])


# ---- in the child ----


class Judge:
    """A prepared kind, and a folder of its own for its cases and for what they leave behind."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        find_neighbours()
        self.kind, self.place, self.temporary = kind, folder / "cases", folder / "tmp"
        self.place.mkdir()
        self.temporary.mkdir()
        (folder / "base").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.temporary)
        self.module = importlib.import_module(kind.module)
        self.state = self.module.prepare(folder / "base")
        self.known = set(os.listdir(self.temporary))
        os.chdir(self.place)

    def __call__(self, sample: int, index: int) -> tuple[str, str]:
        """A word and a line on one case."""
        try:
            answer = (self.module.case(self.state, generator(self.kind, sample, index), self.place), "")
        except SubbyteError as error:
            text = str(error)
            answer = ("refused", "") if text.strip() else ("untyped", f"{type(error).__name__} without a word")
        except Fault as error:
            answer = ("wrong", str(error))
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            answer = ("untyped", f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})")
        left = self._clear()
        return ("left behind", left) if left else answer

    def _clear(self) -> str:
        left = [name for name in os.listdir(self.place) if name != "given"]
        fresh = set(os.listdir(self.temporary)) - self.known
        for path in (*self.place.iterdir(), *(self.temporary / name for name in fresh)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return ", ".join(sorted([*left, *fresh]))


def limit_memory(room: int) -> None:
    """A case that asks for more than `room` bytes gets a MemoryError, and does not take the machine with it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def child(kind: Kind, folder: str, sample: int, first: int, end: int, at: Any, pipe: Any) -> None:
    """Judges cases until `end`; `at` is the case at work. Sends faults as they come and the words at the end."""
    os.environ |= {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    silence = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(silence, handle)
    warnings.simplefilter("error")
    for others in kind.warn:
        warnings.filterwarnings("ignore", module=others)
    judge = Judge(kind, Path(folder))
    limit_memory(kind.room)
    words: collections.Counter[str] = collections.Counter()
    for index in range(first, end):
        at.value = index
        word, line = judge(sample, index)
        words[word] += 1
        if word in FAULTS:
            pipe.send((index, word, " ".join(line.split())[:300]))
    pipe.send(words)


# ---- in the parent ----


def run_piece(kind: Kind, sample: int, first: int, count: int) -> Piece:
    """Judge these cases; a case may end its process or never return, and the next ones still run."""
    piece = Piece(sample, first, count)
    begin = time.monotonic()
    while first < piece.first + count:
        first = _run(kind, piece, first, piece.first + count)
    piece.seconds = time.monotonic() - begin
    return piece


def _run(kind: Kind, piece: Piece, first: int, end: int) -> int:
    """Runs one child; returns the case to go on with."""
    context = multiprocessing.get_context("spawn")
    at = context.Value("q", -1, lock=False)
    with tempfile.TemporaryDirectory(prefix="subbyte-fuzz-") as folder:
        pipe, theirs = context.Pipe(duplex=False)
        arguments = (kind, folder, piece.sample, first, end, at, theirs)
        process = context.Process(target=child, args=arguments, daemon=False)
        process.start()
        theirs.close()
        word, answer = _watch(kind, process, pipe, at, piece)
        process.kill()
        process.join()
    if isinstance(answer, collections.Counter):
        piece.words.update(answer)
        return end
    index = int(at.value)
    if index < first:
        raise RuntimeError(f"the cases of '{kind.name}' could not be prepared: {word} {answer or ''}")
    seen = collections.Counter(fault[1] for fault in piece.faults if first <= fault[0] < index)
    piece.words.update({"right or refused": index - first - seen.total(), **seen, word: 1})
    piece.faults.append((index, word, str(answer or "")))
    return index + 1


def _watch(kind: Kind, process: Any, pipe: Any, at: Any, piece: Piece) -> tuple[str, Any]:
    """The words of a child that came to its end; else what became of it."""
    case, since, used = -1, time.monotonic(), 0.0
    while True:
        ended = not process.is_alive()  # asked before the pipe is emptied
        with contextlib.suppress(EOFError, ConnectionError):
            while pipe.poll(0.0 if ended else 0.2):
                answer = pipe.recv()
                if isinstance(answer, collections.Counter):
                    return "", answer
                piece.faults.append(answer)
        if ended:
            code = process.exitcode
            return "crash", signal.Signals(-code).name if code < 0 else f"exit status {code}"
        now, cpu = time.monotonic(), _cpu_seconds(process.pid)
        if at.value != case or case < 0:
            case, since, used = int(at.value), now, cpu
        limit = kind.seconds if case >= 0 else 20 * kind.seconds
        if cpu - used > limit or now - since > SILENT * limit:
            return "hang", f"{cpu - used:.0f} s of the CPU, {now - since:.0f} s in all"


def _cpu_seconds(process: int) -> float:
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # its own and its children's
    return 0.0


# ---- what is saved ----


def load_saved() -> dict[str, Any]:
    """By kind: what reads it, how many cases are owed, and the finished pieces."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _pieces(kind: Kind) -> list[dict[str, Any]]:
    return list(load_saved().get(kind.name, {}).get("pieces", []))


def save(kind: Kind, piece: Piece) -> None:
    """Add a piece, in place of an earlier run of the same cases."""
    done = {each.name: _pieces(each) for each in KINDS.values()}
    rows = [row for row in done[kind.name] if (row["sample"], row["first"]) != (piece.sample, piece.first)]
    done[kind.name] = sorted([*rows, piece.to_json()], key=lambda row: (row["sample"], row["first"]))
    saved = {
        each.name: {"read_by": each.read_by, "wanted": each.wanted, "pieces": done[each.name]}
        for each in KINDS.values()
    }
    RESULTS.write_text(json.dumps(saved, indent=1) + "\n")


def missing(kind: Kind, sample: int) -> list[int]:
    """Where the pieces begin that no saved run has, or has with a fault."""
    done = {row["first"] for row in _pieces(kind) if row["sample"] == sample and not row["faults"]}
    return [first for first in range(0, kind.wanted, kind.piece) if first not in done]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--sample", type=int, default=0, metavar="N")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no piece after so many")
    parser.add_argument("--case", type=int, metavar="I", help="this case alone, in this process")
    options = parser.parse_args(arguments)
    kinds = [KINDS[name] for name in options.kinds or KINDS]
    if options.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            judge = Judge(kinds[0], Path(folder))
            print(judge.module.case(judge.state, generator(kinds[0], options.sample, options.case), judge.place))
        return 0
    begin, faults = time.monotonic(), 0
    turns = [(first / kind.wanted, kind.name, first) for kind in kinds for first in missing(kind, options.sample)]
    for _, name, first in sorted(turns):
        if time.monotonic() - begin > options.seconds:
            break
        kind = KINDS[name]
        piece = run_piece(kind, options.sample, first, min(kind.piece, kind.wanted - first))
        save(kind, piece)
        faults += len(piece.faults)
        print(f"{name} {first}: {piece.seconds:.0f} s, {dict(piece.words)}", flush=True)
        for fault in piece.faults:
            print(f"  case {fault[0]}: {fault[1]}: {fault[2]}", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
