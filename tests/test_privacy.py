"""Nothing leaves the machine, nothing is written at home: train to bench, traced by the kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pages import PACKAGES
from this_machine import skip_for_lack_of, skip_unless_it_runs

from subbyte.onnx_files.onnxruntime import VARIABLE

ALONE = (
    "unshare",
    "--user",
    "--map-root-user",
    "--net",
)  # a process without a network: what it tries, it tries in vain
TRACED = ("strace", "--follow-forks", "--seccomp-bpf", "-e", "trace=network")
PIPELINE = """
import sys
from importlib.util import find_spec
from subbyte.cli import main
for command in (
    "train mlp --scheme ternary --model-option hidden=32, --epochs 1 --quiet --out t",
    "export t -o t.onnx",
    "compile t.onnx -o t.subbyte",
    "check t t.onnx t.subbyte --data digits --limit 8",
    "bench t.subbyte --iterations 20 --seconds 0.01 --baseline onnxruntime --onnx t.onnx",
    *(["curves t -o t.png"] if find_spec("matplotlib") else []),
):
    main(command.split(), standalone_mode=False)
assert "onnxruntime" in sys.modules
"""
MATPLOTLIB = "import matplotlib.font_manager"
SETTINGS = """
from pathlib import Path
file = Path.home() / ".config" / "matplotlib" / "matplotlibrc"
file.parent.mkdir(parents=True)
file.write_text("lines.linewidth: 7")
import subbyte.models.train.callbacks
import matplotlib
assert matplotlib.rcParams["lines.linewidth"] == 7
"""
ONNXRUNTIME = """
import numpy as np
from onnx import TensorProto, helper
import onnxruntime
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""
CONNECT = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError as error:
    print(error)
"""
LOOK_UP = """
import socket
try:
    socket.getaddrinfo("subbyte.invalid", 80)
except OSError as error:
    print(error)
"""


@dataclass(frozen=True)
class Traces:
    """Calls that connect or look up a name, files left at home, and what is left in the folder of temporary files."""

    calls: list[str]
    home: list[str]
    temporary: list[str]


def run(code: str, folder: Path, *prefix: str, **variables: str) -> Traces:
    """Runs a program in a fresh HOME and TMPDIR, without the variable that keeps onnxruntime silent."""
    home, temporary, work = (folder / name for name in ("home", "tmp", "work"))
    for path in (home, temporary, work):
        path.mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != VARIABLE and not name.startswith(("XDG_", "TORCHINDUCTOR_"))
    }
    environment = {**kept, "HOME": str(home), "TMPDIR": str(temporary), **variables}
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trace = folder / "trace"
    lines = trace.read_text().splitlines() if trace.exists() else []
    found = [
        sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file() or top is temporary)
        for top in (home, temporary)
    ]
    return Traces([line for line in lines if re.search(r"sa_family=AF_INET|sun_path=.*resolve", line)], *found)


def traced(code: str, folder: Path) -> Traces:
    skip_unless_it_runs("strace", ["strace", "-V"])
    skip_unless_it_runs("the right to make a namespace without a network", [*ALONE, "true"])
    skip_unless_it_runs("the right to trace", [*ALONE, *TRACED, "-o", os.devnull, "true"])
    return run(code, folder, *ALONE, *TRACED, "-o", str(folder / "trace"))


def test_the_pipeline_reaches_for_no_network_and_writes_nothing_at_home(tmp_path: Path) -> None:
    """But the cache of zig, where the system's compiler does not do."""
    left = traced(PIPELINE, tmp_path)
    assert left.calls == []
    assert [name for name in left.home if not name.startswith(".cache/zig/")] == []
    assert left.temporary == []


@pytest.mark.parametrize("code", [CONNECT, LOOK_UP])
def test_a_program_that_connects_or_looks_up_a_name_is_seen(tmp_path: Path, code: str) -> None:
    """Otherwise the test above could not fail."""
    assert traced(code, tmp_path).calls


def test_onnxruntime_alone_writes_at_home_or_has_lost_its_telemetry(tmp_path: Path) -> None:
    """What subbyte prevents: the same import without the variable, and with it."""
    (tmp_path / "silent").mkdir()
    (tmp_path / "loud").mkdir()
    assert run(ONNXRUNTIME, tmp_path / "silent", **{VARIABLE: "1"}).home == []
    if run(ONNXRUNTIME, tmp_path / "loud").home == []:
        skip_for_lack_of("an onnxruntime with telemetry")


def test_matplotlib_alone_writes_at_home_and_ours_writes_nothing_but_reads_its_settings(tmp_path: Path) -> None:
    """What subbyte prevents: lightning imports it where it is installed."""
    skip_unless_it_runs("matplotlib", [sys.executable, "-c", MATPLOTLIB])
    for name in ("alone", "ours"):
        (tmp_path / name).mkdir()
    assert [Path(name).match("fontlist-*.json") for name in run(MATPLOTLIB, tmp_path / "alone").home] == [True]
    ours = run(SETTINGS, tmp_path / "ours")
    assert ours.home == [".config/matplotlib/matplotlibrc"]
    assert [name for name in ours.temporary if "matplotlib" in name] == []


def test_lightning_is_imported_in_one_place() -> None:
    root = Path(__file__).parents[1]
    words = re.compile(r"^\s*(?:import|from) (?:lightning|torchmetrics)\b", re.MULTILINE)
    files = [path for folder in PACKAGES for path in (root / folder).rglob("*.py") if words.search(path.read_text())]
    assert [str(path.relative_to(root)) for path in files] == ["models/train/lightning.py"]


def test_an_import_before_ours_is_warned_of_once() -> None:
    code = """
import warnings
import onnxruntime
from subbyte.onnx_files.onnxruntime import onnxruntime as ours
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert ours() is ours() is onnxruntime
    assert ours("quantization").quantize_static
print([(w.category.__name__, w.filename == "<string>", str(w.message)) for w in caught])
"""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    loud, silent = (
        subprocess.run([sys.executable, "-c", code], env=e, capture_output=True, text=True, check=True).stdout
        for e in (environment, {**environment, VARIABLE: "1"})
    )
    assert loud.count("TelemetryWarning") == 1
    assert f"without {VARIABLE}=1" in loud
    assert silent == "[]\n"


def test_onnxruntime_is_imported_in_one_place() -> None:
    root = Path(__file__).parents[1]
    words = re.compile(r"""^\s*(?:import|from) onnxruntime|import_module\(["']onnxruntime""", re.MULTILINE)
    folders = (*PACKAGES, "benchmarks", "examples")
    files = [path for folder in folders for path in (root / folder).rglob("*.py") if words.search(path.read_text())]
    assert [str(path.relative_to(root)) for path in files] == ["benchmarks/start_up.py"]  # in a program that it times
