"""The house itself: links lead somewhere, importing the front door is light, imports have no circle."""

import ast
import re
import subprocess
import sys
from collections.abc import Container
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from pages import PACKAGES

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


# Their imports under TYPE_CHECKING are left out: the front door names what all others offer, and report.py prints a
# result whose `__str__` calls it.
UNTYPED = {"subbyte", "subbyte.runtime.report"}


def test_no_module_imports_itself_through_others() -> None:
    """At top level, in functions and, but for UNTYPED, under TYPE_CHECKING."""
    sources = {
        _module(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for folder in ("subbyte", *PACKAGES)
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(sources) > 200
    assert circle(sources, untyped=UNTYPED) == []


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
    imports = {name: _imports(ast.parse(text), name not in untyped, sources) - {name} for name, text in sources.items()}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _imports(node: ast.AST, typing: bool, modules: Container[str]) -> set[str]:
    """Which of these modules the code may import: of `from a import b` a.b if it is one, else a."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name in modules else str(node.module) for name in inner]
    typed = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    children = node.orelse if isinstance(node, ast.If) and typed and not typing else ast.iter_child_nodes(node)
    return {name for name in names if name in modules}.union(*(_imports(c, typing, modules) for c in children))


def _module(path: Path) -> str:
    """The dotted name of a file of the repository in the package."""
    parts = path.with_suffix("").parts[: -1 if path.name == "__init__.py" else None]
    return ".".join(parts if parts[0] == "subbyte" else ("subbyte", *parts))
