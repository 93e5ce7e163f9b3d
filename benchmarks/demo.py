"""Run examples/demo.sh, as `make demo` does, and save what it prints: python benchmarks/demo.py [--json FILE]

README shows an excerpt, which benchmarks/tables.py makes from the saved file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from measured_on import measured_on

from subbyte.files.output import write_file

ROOT = Path(__file__).resolve().parents[1]
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def steps(printed: str) -> list[dict[str, object]]:
    """Each command of the demo with the lines that it printed."""
    found: list[dict[str, object]] = []
    lines: list[str] = []
    for line in STYLE.sub("", printed).splitlines():
        if line.startswith("$ "):
            lines = []
            found.append({"command": line[2:], "lines": lines})
        else:
            lines.append(line.rstrip())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "demo.json")
    output = parser.parse_args().json
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": "120", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        ["sh", "examples/demo.sh", "runs/demo"], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    saved = {"machine": measured_on(), "steps": steps(done.stdout)}
    write_file(output, (json.dumps(saved, indent=1, default=str) + "\n").encode())


if __name__ == "__main__":
    main()
