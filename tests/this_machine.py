"""What the machine here lets a test do beside its CPU: tests of what it lacks are skipped by name and counted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

import pytest

MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")  # a process that may mount, and nobody else sees it


def skip_unless_it_runs(name: str, command: Sequence[str]) -> None:
    """Skips the test, with the reason that `not_run` counts, unless `command` ends well."""
    if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"this machine lacks {name}")


def with_mount(mount: str, *command: str) -> list[str]:
    """`command`, run where `mount` (a line of shell) has been done; the test is skipped where none may be."""
    skip_unless_it_runs("the right to mount in a namespace", [*MOUNTS, "true"])
    return [*MOUNTS, "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
