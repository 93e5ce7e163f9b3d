"""Install what `make release` built into empty environments and use it from another folder.

try_release.py DIST [PYTHON...]: the wheel and the source distribution of DIST, by the Python that runs this file, each

- with every extra: its files are those of the repository, and it trains, exports, compiles, runs, checks and benches;
- alone, as on a device: it brings nothing heavy, and runs, checks and benches the bundle that the other made.

Then the wheel by every other PYTHON, without torch: alone, and with what compiling needs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "onnx", "onnxruntime", "apache-tvm", "lightning"}
WITH_BOARDS = ("cortex-m4", "rv32i")  # targets whose bundles hold the C files of a board
INPUT = "import numpy; numpy.save('x.npy', numpy.random.default_rng(0).random((1, 1, 8, 8), 'float32'))"


def run(*command: str | Path, folder: Path | None = None) -> str:
    """The output of a command that sees no other Python's packages; its failure ends the trial."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Installed:
    """An environment of its own with what is built, used from `folder`, which is not the repository."""

    def __init__(self, python: str, environment: Path, what: str, folder: Path) -> None:
        run(python, "-m", "venv", environment)
        self.programs = environment / "bin"
        self.folder = folder
        self.install(what)

    def install(self, what: str) -> None:
        """pip's own words where it fails."""
        options = ("--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt"))
        run(self.programs / "python", "-m", "pip", "install", *options, what, folder=self.folder)

    def use(self, *words: str) -> str:
        """The output of `subbyte WORDS`."""
        return run(self.programs / "subbyte", *words, folder=self.folder)

    def python(self, code: str) -> str:
        """What a program prints."""
        return run(self.programs / "python", "-c", code, folder=self.folder).strip()

    def check_version(self, expected: str) -> None:
        """The program says the version that the file's name has."""
        said = self.use("--version").split()[-1]
        if said != expected:
            raise SystemExit(f"the program says version {said}, the file is of {expected}")

    def check_files(self) -> None:
        """The files of the installed package are those of the repository's packages: none missing, none left over."""
        place = Path(self.python("import subbyte; print(subbyte.__path__[0])"))
        files = (path.relative_to(place) for path in place.rglob("*") if path.is_file())
        found = {path.as_posix() for path in files if "__pycache__" not in path.parts}
        expected = packaged_files()
        if found != expected:
            raise SystemExit(
                f"missing from the package: {sorted(expected - found)}; only in it: {sorted(found - expected)}"
            )

    def check_light(self) -> None:
        """Nothing heavy came with the runtime."""
        listed = run(self.programs / "python", "-m", "pip", "list", "--format=json", folder=self.folder)
        found = HEAVY & {row["name"].lower() for row in json.loads(listed)}
        if found:
            raise SystemExit(f"the runtime alone brings {sorted(found)}")

    def compile(self) -> None:
        """m.onnx for this machine, and as C sources with the files of each board."""
        self.use("compile", "m.onnx", "-o", "m.subbyte")
        for target in WITH_BOARDS:
            self.use("compile", "m.onnx", "--target", target, "-o", f"{target}.subbyte")

    def run_and_bench(self) -> bytes:
        """What a device does with m.subbyte; the file of outputs."""
        self.use("check", "m.subbyte")
        self.use("run", "m.subbyte", "--input", "x.npy", "--output", "y.npy")
        self.use("bench", "m.subbyte", "--seconds", "0.2", "--json", "bench.json")
        result = json.loads((self.folder / "bench.json").read_text())
        if not (result["golden_exact"] and result["iterations"] and result["latency_ms"]["min"] > 0):
            raise SystemExit(f"bench measured nothing, or something else: {result}")
        return (self.folder / "y.npy").read_bytes()


def packaged_files() -> set[str]:
    """Files that git tracks in the packages, by their path in the installed package."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    tracked = run("git", "-C", ROOT, "ls-files", "-z", "--", *sorted(packages)).split("\0")
    return {name.removeprefix("subbyte/") for name in tracked if name}


def try_file(file: Path, folder: Path) -> bytes:
    """Both installations of one file by this Python; the outputs, which are the same."""
    version = file.name.removesuffix(".tar.gz").split("-")[1]
    everything = Installed(sys.executable, folder / "all", f"subbyte[all] @ {file.as_uri()}", folder)
    everything.check_version(version)
    everything.check_files()
    words = ("mlp", "--data", "digits", "--scheme", "ternary", "--epochs", "1", "--out", "run")
    everything.use("train", *words)
    everything.use("export", "run", "-o", "m.onnx")
    everything.python(INPUT)
    everything.compile()
    outputs = everything.run_and_bench()
    alone = Installed(sys.executable, folder / "runtime", str(file), folder)
    alone.check_version(version)
    try_alone(alone, outputs)
    return outputs


def try_alone(alone: Installed, outputs: bytes) -> None:
    """The runtime and nothing else gives these outputs."""
    alone.check_light()
    if alone.run_and_bench() != outputs:
        raise SystemExit("the runtime alone gives other outputs than the installation that compiled the bundle")


def try_python(python: str, file: Path, folder: Path, outputs: bytes) -> None:
    """The runtime alone by another Python, then with the extra that messages name to compile what was exported here."""
    installed = Installed(python, folder / python.strip("/").replace("/", "-"), str(file), folder)
    try_alone(installed, outputs)
    installed.install("subbyte[compile]")
    installed.compile()
    if installed.run_and_bench() != outputs:
        raise SystemExit(f"{python}: a bundle that it compiled gives other outputs")


def main(dist: Path, *pythons: str) -> None:
    """Every file of `dist`; the first failure ends it."""
    files = sorted((*dist.glob("*.whl"), *dist.glob("*.tar.gz")))
    if [file.suffix for file in files] != [".whl", ".gz"]:
        raise SystemExit(f"{dist} has {[file.name for file in files]}, expected a wheel and a source distribution")
    for built in files:
        with tempfile.TemporaryDirectory(prefix="subbyte-release-") as name:
            # By a path that pip has not seen: it keeps the wheel that it builds of a source distribution by path alone.
            file = Path(shutil.copy(built, name))
            began = time.monotonic()
            outputs = try_file(file, Path(name))
            print(f"{file.name}: with [all] and alone ({time.monotonic() - began:.0f} s)", flush=True)
            for python in pythons if file.suffix == ".whl" else ():
                began = time.monotonic()
                try_python(python, file, Path(name), outputs)
                print(f"{file.name}: {python}, alone and with [compile] ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
