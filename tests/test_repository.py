"""The house itself: links in the documents lead somewhere, and importing the front door stays light."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_importing_subbyte_and_its_runtime_brings_no_training_or_compiler_libraries() -> None:
    code = (
        "import sys, subbyte, subbyte.cli, subbyte.runtime, subbyte.runtime.session; "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tvm', 'lightning', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_package_is_in_the_wheel() -> None:
    """The list is written by hand: a package that it lacks is missing where subbyte is installed, and only there."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'"(subbyte[^"]*)"', text.split("\npackages = [")[1].split("]")[0])
    tracked = subprocess.run(["git", "ls-files", "*/__init__.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    folders = [Path(name).parent for name in tracked.stdout.split() if not name.startswith("tests/")]
    names = [".".join(("subbyte", *(f.parts[1:] if f.parts[0] == "subbyte" else f.parts))) for f in folders]
    assert sorted(listed) == sorted(names)


def test_public_names_are_documented() -> None:
    import subbyte

    for name in subbyte.__all__:
        if name != "__version__":
            assert (getattr(subbyte, name).__doc__ or "").strip(), name
