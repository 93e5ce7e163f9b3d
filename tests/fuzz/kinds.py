"""What is fuzzed: a row for each kind of file that may come from outside. To add one, write a module and a row.

The module has `prepare(folder)`, called once a process, whose result goes to `case(state, rng, folder)`. A case draws
a file, right or wrong, puts it into `folder / "given"`, hands it to the reader and returns a word on what came of it.
It raises Fault where the reader's result is wrong; errors of ours mean "refused". Everything that a reader leaves
behind beside `given`, in `folder` or among temporary files, is a fault, and so is any other exception.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FAULTS = ("wrong", "untyped", "left behind", "crash", "hang")


class Fault(Exception):
    """A reader's result is not what the file says."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, what reads it, how many cases are owed, and how many make a piece."""

    name: str
    module: str
    read_by: str
    wanted: int
    piece: int
    room: int = 4 << 30  # bytes that a case may map beyond what the process has when it is prepared
    seconds: float = 60.0  # of the CPU, for a case
    warn: tuple[str, ...] = ()  # modules of others that may warn; every other warning is a fault


KINDS = {
    kind.name: kind
    for kind in (
        Kind("bundle", "fuzz_bundle", "`open_bundle`, `load`, a run and a trace", 200_000, 10_000),
        Kind("npy", "fuzz_npy", "the reader of `.npy` arrays", 200_000, 10_000),
        Kind("images", "fuzz_images", "image folders and IDX files", 200_000, 10_000, warn=("PIL",)),
        Kind("meters", "fuzz_meters", "meters' logs in CSV, and counters in sysfs", 200_000, 10_000),
        Kind("checkpoint", "fuzz_checkpoint", "`load_checkpoint`", 140_000, 5_000),
        Kind("inspect", "fuzz_onnx", "`inspect` of an ONNX file", 50_000, 2_500, warn=("onnx",)),
        Kind(
            "compile", "fuzz_compile", "`compile` and a run: graphs of a grammar", 5_000, 250, room=16 << 30, warn=("",)
        ),
        Kind("nodes", "one_node", "`compile` and a run: graphs of one operator", 5_000, 250, room=16 << 30, warn=("",)),
        Kind(
            "core", "fuzz_core", "the C core, under the sanitizers of addresses and undefined behaviour", 100_000, 5_000
        ),
        Kind("pool", "fuzz_pool", "the C core, under the thread sanitizer", 20_000, 1_000),
    )
}


def find_neighbours() -> None:
    """Let modules import what the other folders of tests make."""
    for name in ("fuzz", "runtime", "compile", "export"):
        folder = str(TESTS / name)
        if folder not in sys.path:
            sys.path.append(folder)
