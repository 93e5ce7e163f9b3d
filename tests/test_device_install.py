"""A device needs only `pip install subbyte` (NumPy, click, rich) and the bundle: shown in a venv of its own."""

import importlib.util
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from pages import PACKAGES

import subbyte

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("try_release", ROOT / ".ci" / "try_release.py")
assert spec is not None
assert spec.loader is not None
try_release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(try_release)
FILES = ("pyproject.toml", "README.md", "LICENSE")


def sources(folder: Path) -> Path:
    """A copy of what the wheel is built from, so that this build and another in the checkout never meet."""
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh venv with the wheel and what the wheel asks for, and nothing else; the path of its bin folder."""
    folder = tmp_path_factory.mktemp("device")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(sources(folder / "sources"))], check=True)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    wheel = str(next(folder.glob("subbyte-*.whl")))
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints, wheel]
    subprocess.run(install, check=True)
    return python.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    subbyte.train("mlp", data="digits", scheme="ternary", epochs=1, out=folder / "run", progress=False)
    subbyte.export(folder / "run", folder / "m.onnx")
    subbyte.compile(folder / "m.onnx", folder / "m.subbyte")
    return folder / "m.subbyte"


def call(device: Path, *arguments: object) -> str:
    command = [str(device / "subbyte"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=device).stdout


def test_the_venv_has_none_of_the_heavy_libraries(device: Path) -> None:
    listed = subprocess.run([device / "python", "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert "subbyte" in names
    assert not names & {"torch", "onnx", "onnxruntime", "apache-tvm", "lightning", "scipy"}


def test_every_file_of_the_packages_is_installed(device: Path) -> None:
    (place,) = device.parent.glob("lib/python*/site-packages/subbyte")
    expected = try_release.packaged_files()
    assert {"py.typed", "runtime/c/boards/mps2/link.ld", "formats/__init__.py"} < expected
    assert [name for name in sorted(expected) if not (place / name).is_file()] == []


def test_it_runs_the_bundle_to_the_same_bits(device: Path, bundle: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    call(device, "run", bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    with subbyte.load(bundle) as session:
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), session.run(x))


def test_it_benchmarks_inspects_and_examines_itself(device: Path, bundle: Path) -> None:
    assert "p99" in call(device, "bench", bundle, "--seconds", "0.1")
    assert "ternary" in call(device, "inspect", bundle)
    assert "golden outputs: equal" in call(device, "check", bundle)
    assert "pip install 'subbyte[train]'" in call(device, "doctor").replace("\n", "")


def test_what_it_lacks_is_named_with_the_way_to_get_it(device: Path) -> None:
    command = [str(device / "subbyte"), "train", "mlp", "--out", "x"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=device)
    assert result.returncode == 1
    assert "pip install 'subbyte[train]'" in result.stderr
    assert "Traceback" not in result.stderr
