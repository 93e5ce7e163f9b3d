"""The short run of the service test: `make soak` makes a million calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_service_under_trouble_gives_no_wrong_number_and_holds_nothing() -> None:
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--calls", "20000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    *holdings, seen = done.stdout.splitlines()
    assert len(holdings) == 10
    counts = json.loads(seen)
    assert counts["calls"] + counts["closed"] >= 20_000
    assert all(counts[what] > 0 for what in ("signals", "closed", "replaced", "overwritten", "refused"))
