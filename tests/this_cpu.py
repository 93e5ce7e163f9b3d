"""What the CPU here has: tests of what it lacks are skipped by name and counted; features can be held down."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import pytest
import this_machine


def lacking(features: Iterable[str]) -> list[str]:
    """Those of the features that this CPU has not, sorted."""
    from subbyte.tvm_kernels.machines.host import host_features

    return sorted(set(features) - host_features())


def skip_unless_it_has(features: Iterable[str]) -> None:
    """Skips the test, with a reason that is counted, unless the CPU has all of the features."""
    missing = lacking(features)
    if missing:
        this_machine.skip_for_lack_of(", ".join(missing), of="CPU")


def needs(features: Iterable[str]) -> pytest.MarkDecorator:
    """The mark of a test, or of one of its parameters, that is skipped in the same way."""
    missing = lacking(features)
    return this_machine.needs(not missing, ", ".join(missing), of="CPU")


def hold_down(names: Sequence[str]) -> IO[str]:
    """Makes this process and its children see a CPU without the features that start with one of `names`.

    Returns the file that stands for /proc/cpuinfo: it goes when the file is closed. To be called before subbyte is
    imported. onnxruntime and torch ask the CPU itself.
    """
    file = tempfile.NamedTemporaryFile("w", prefix="cpuinfo-")  # noqa: SIM115
    os.environ["SUBBYTE_CPUINFO"] = file.name
    from subbyte.runtime.features import FEATURES, canonical
    from subbyte.tvm_kernels.machines.host import host_features

    held = tuple(canonical(name) for name in names)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, colon, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            value = " " + " ".join(name for name in value.split() if not canonical(name).startswith(held))
        file.write(f"{key}{colon}{value}\n")
    file.flush()
    for name in held:
        if not any(feature.startswith(name) for feature in FEATURES):
            raise pytest.UsageError(f"--without {name}: no CPU feature that kernels ask for starts so")
    assert not any(feature.startswith(held) for feature in host_features())
    return file
