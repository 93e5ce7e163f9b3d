"""Install what `make release` built into empty environments and use it from another folder: try_release.py DIST.

Wheel and source distribution, each twice: with every extra (train, export, compile, run, check, bench), and alone, as
on a device (run, check and bench of the bundle that the other made).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "onnx", "onnxruntime", "apache-tvm", "lightning"}


def install(folder: Path, what: str) -> Path:
    """A new environment with `what`; the folder of its programs."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    options = ["--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", *options, what], check=True)
    return python.parent


def use(programs: Path, folder: Path, *words: str) -> str:
    """The output of `subbyte WORDS` in `folder`, which is not the repository."""
    done = subprocess.run([programs / "subbyte", *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"subbyte {' '.join(words)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def check_version(programs: Path, folder: Path, expected: str) -> None:
    """The version that the file's name has is the one that the program says."""
    said = use(programs, folder, "--version").split()[-1]
    if said != expected:
        raise SystemExit(f"the program says version {said}, the file is of {expected}")


def check_light(programs: Path) -> None:
    """Nothing heavy came with the runtime."""
    listed = subprocess.run(
        [programs / "python", "-m", "pip", "list", "--format=json"], capture_output=True, check=True
    )
    found = HEAVY & {row["name"].lower() for row in json.loads(listed.stdout)}
    if found:
        raise SystemExit(f"the runtime alone brings {sorted(found)}")


def run_and_bench(programs: Path, folder: Path) -> None:
    """What a device does."""
    use(programs, folder, "check", "m.subbyte")
    code = "import numpy; numpy.save('x.npy', numpy.zeros((1, 1, 8, 8), 'float32'))"
    subprocess.run([programs / "python", "-c", code], cwd=folder, check=True)
    use(programs, folder, "run", "m.subbyte", "--input", "x.npy", "--output", "y.npy")
    use(programs, folder, "bench", "m.subbyte", "--seconds", "0.2", "--json", "bench.json")


def try_file(file: Path, folder: Path) -> None:
    """Both installations of one file."""
    version = file.name.removesuffix(".tar.gz").split("-")[1]
    began = time.monotonic()
    everything = install(folder / "all", f"subbyte[all] @ {file.as_uri()}")
    check_version(everything, folder, version)
    use(everything, folder, "train", "mlp", "--data", "digits", "--scheme", "ternary", "--epochs", "1", "--out", "run")
    use(everything, folder, "export", "run", "-o", "m.onnx")
    use(everything, folder, "compile", "m.onnx", "-o", "m.subbyte")
    run_and_bench(everything, folder)
    alone = install(folder / "runtime", str(file))
    check_version(alone, folder, version)
    check_light(alone)
    run_and_bench(alone, folder)
    seconds = time.monotonic() - began
    print(f"{file.name}: installs with [all] and alone; exports, compiles, runs, benches ({seconds:.0f} s)")


def main(dist: Path) -> None:
    """Every file of `dist`; the first failure ends it."""
    files = sorted((*dist.glob("*.whl"), *dist.glob("*.tar.gz")))
    if len(files) != 2:
        raise SystemExit(f"{dist} has {[file.name for file in files]}, expected a wheel and a source distribution")
    for file in files:
        with tempfile.TemporaryDirectory(prefix="subbyte-release-") as folder:
            try_file(file.resolve(), Path(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
