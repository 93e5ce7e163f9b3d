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


def test_public_names_are_documented() -> None:
    import subbyte

    for name in subbyte.__all__:
        if name != "__version__":
            assert (getattr(subbyte, name).__doc__ or "").strip(), name
