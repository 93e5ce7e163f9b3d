"""What the machine here lets a test do: tests of what it lacks are skipped by name and counted.

Every skip of the tests is made here, or in this_cpu.py for features of the CPU; `test_repository.py` refuses any other.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import NoReturn

import pytest

MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")  # a process that may mount, and nobody else sees it


def skip_for_lack_of(what: str, of: str = "machine") -> NoReturn:
    """Skips the test, with the reason that `not_run` counts."""
    pytest.skip(f"this {of} lacks {what}")


def needs(has: bool, what: str, of: str = "machine") -> pytest.MarkDecorator:
    """The mark of a test, or of one of its parameters, that is skipped in the same way unless `has`."""
    return pytest.mark.skipif(not has, reason=f"this {of} lacks {what}")


needs_x86_64 = needs(platform.machine() in ("x86_64", "AMD64"), "an x86-64 CPU")

# 1.23 is the last for Python 3.10: it fails in what newer ones compute.
_ONNXRUNTIME = tuple(int(part) for part in version("onnxruntime").split(".")[:2])
needs_newer_onnxruntime = needs(_ONNXRUNTIME > (1, 23), "an onnxruntime newer than 1.23")


def skip_unless_it_runs(name: str, command: Sequence[str]) -> None:
    """Skips the test for lack of `name` unless `command` ends well."""
    if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode:
        skip_for_lack_of(name)


def with_mount(mount: str, *command: str) -> list[str]:
    """`command`, run where `mount` (a line of shell) has been done; the test is skipped where none may be."""
    skip_unless_it_runs("the right to mount in a namespace", [*MOUNTS, "mount", "-t", "tmpfs", "tmpfs", "/tmp"])
    return [*MOUNTS, "sh", "-c", f'{mount} && exec "$@"', "sh", *command]


def not_run(reasons: Iterable[str]) -> list[str]:
    """A line for each reason that tests were skipped for: how many tests, what the CPU or the machine lacks."""
    counted = Counter(re.sub(r"^(Skipped: )?(this (CPU|machine) lacks )?", "", reason) for reason in reasons)
    return [f"{count:5} {lacks}" for lacks, count in sorted(counted.items())]
