"""The house itself: links lead somewhere, importing the front door is light, imports have no circle."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Container
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from this_machine import not_run

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("architecture_svg", ROOT / "generate" / "architecture_svg.py")
assert spec is not None
assert spec.loader is not None
architecture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(architecture)
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


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


def test_baselines_of_a_file_are_made_without_torch() -> None:
    code = "import sys, subbyte.export.baselines, subbyte.judge.verdict; assert 'torch' not in sys.modules"
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


# Their imports under TYPE_CHECKING are left out: the front door names what all others offer, and report.py prints a
# result whose `__str__` calls it.
UNTYPED = {"subbyte", "subbyte.runtime.report"}


def test_no_module_imports_itself_through_others() -> None:
    """At top level, in functions and, but for UNTYPED, under TYPE_CHECKING."""
    texts = architecture.sources()
    assert len(texts) > 200
    assert circle(texts, untyped=UNTYPED) == []


@pytest.mark.parametrize(
    ("line", "typing"),
    [
        ("from subbyte import a", False),
        ("from subbyte.a import x", False),
        ("import subbyte.a", False),
        ("def f():\n    import subbyte.a", False),
        ("if TYPE_CHECKING:\n    from subbyte.a import x", True),
    ],
)
def test_a_circle_is_found(line: str, typing: bool) -> None:
    sources = {"subbyte.a": "import subbyte.b", "subbyte.b": "from subbyte.c import y", "subbyte.c": ""}
    assert circle(sources, untyped=()) == []
    sources["subbyte.c"] = line
    assert set(circle(sources, untyped=())) == set(sources)
    assert (circle(sources, untyped=["subbyte.c"]) == []) == typing


def circle(sources: dict[str, str], untyped: Container[str]) -> list[str]:
    """Modules of which each imports another of them, the first again at the end; empty where there are none."""
    graph = {}
    for name, text in sources.items():
        found = architecture.imports(ast.parse(text), sources, typed=name not in untyped)
        graph[name] = {other for other in found if other in sources} - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


SKIPS = {"skip", "skipif", "importorskip", "xfail", "skipIf", "skipUnless", "skipTest", "SkipTest", "Skipped"}


def skips(text: str) -> list[int]:
    """Lines that skip a test by pytest or unittest itself."""
    found = []
    for node in ast.walk(ast.parse(text)):
        taken = [node.attr] if isinstance(node, ast.Attribute) else []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("pytest", "_pytest", "unittest"):
            taken = [alias.name for alias in node.names]
        if SKIPS & set(taken):
            found.append(node.lineno)
    return found


def test_every_skip_says_what_the_machine_lacks_and_is_counted() -> None:
    """By this_machine.py, whose reasons the summary of a run counts: a test that never runs is seen."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    found = {str(path.relative_to(ROOT)): skips(path.read_text()) for path in paths}
    assert len(found.pop("tests/this_machine.py")) == 2
    assert {path: lines for path, lines in found.items() if lines} == {}
    assert not_run(["Skipped: this machine lacks strace", "this CPU lacks amxint8", "this machine lacks strace"]) == [
        "    1 amxint8",
        "    2 strace",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "pytest.skip('slow')",
        "import pytest as p\n@p.mark.skipif(True, reason='')\ndef test_x(): pass",
        "from pytest import importorskip",
        "from unittest import SkipTest",
        "raise pytest.skip.Exception('here')",
    ],
)
def test_a_skip_of_its_own_is_found(line: str) -> None:
    assert skips(line)
    assert not skips("from this_machine import skip_for_lack_of\nskip_for_lack_of('strace')")
