"""Start-up and memory: a fresh process from import to the first result, against onnxruntime on the same model.

    python benchmarks/start_up.py resnet8.subbyte [--onnx resnet8.onnx] [--repeats 15] [--json start_up.json]

Times are of the whole child process's own clock, from before its first import to after its first result; memory is the
largest resident set of the child. Both kinds of child run in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from subbyte.files.output import write_file

CHILD = {
    "subbyte": """
import subbyte
session = subbyte.load({path!r}, threads=1)
import numpy as np
session.run([np.zeros(tuple(t.shape), t.dtype) for t in session.inputs])
""",
    "onnxruntime": """
import numpy as np, os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
session = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])
session.run(None, {{i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()}})
""",
}
FRAME = """
import time
start = time.perf_counter()
{body}
taken = time.perf_counter() - start
import json, resource
print(json.dumps([1e3 * taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def measure(kind: str, path: Path) -> tuple[float, float]:
    """Milliseconds to the first result, and largest resident MiB, of one fresh process."""
    code = FRAME.format(body=CHILD[kind].format(path=str(path)))
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    milliseconds, mebibytes = json.loads(output)
    return milliseconds, mebibytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    paths = {"subbyte": arguments.bundle} | ({"onnxruntime": arguments.onnx} if arguments.onnx else {})
    for kind, path in paths.items():
        measure(kind, path)  # fills the file cache
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in paths}
    for _ in range(arguments.repeats):
        for kind, path in paths.items():
            taken[kind].append(measure(kind, path))
    rows = {}
    for kind, values in taken.items():
        times, sizes = zip(*values, strict=True)
        rows[kind] = {"ms_min": min(times), "ms_median": statistics.median(times), "rss_mib": max(sizes)}
        print(f"{kind:<12} {min(times):8.1f} ms min {statistics.median(times):8.1f} ms median {max(sizes):8.1f} MiB")
    if arguments.json:
        write_file(arguments.json, json.dumps(rows, indent=1).encode())


if __name__ == "__main__":
    main()
