"""The documents and messages use the words of the field: docs/glossary.md defines them, INSTEAD replaces the others.

To keep another word out, add a row. Measured tables and inline code in documents are not looked at.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("dialect", "export", "formats", "models", "runtime", "subbyte", "tvm_kernels")

INSTEAD = {
    r"lies?|lay|lying": "is stored, is at, is",
    r"stands?|stood|standing": "is, represents, precedes",
    r"meets?|met": "is compared with, follows, has",
    r"lends?|lent": "grants, gives access to",
    r"leftovers?|left-over": "unsupported operator, remaining",
    r"twins?": "baseline, reference implementation",
    r"house": "repository, package",
    r"hand(s|ed|ing)? on": "passes on, propagates",
    r"(come|comes|coming) to(?! an end)": "is, adds up to",
    r"end(s|ed|ing)? in(?! (`|a dot))": "raises, ends with, leads to",
    r"(bring|brings|brought) to": "converts to",
    r"moves? of (data|codes|elements)": "data movement",
    r"(packed|products? of|sums? of|loose) signs": "binary values",
    r"several forms|forms of (one|a) value": "storages",
    r"straight (line|graph|sequence)": "sequence, graph without control flow",
    r"padded lines?": "padded rows",
    r"(places? of (the|a) window|window places?)": "window position",
    r"other numbers": "different results",
    r"(products?|indices|integers) of run time": "run-time product, run-time indices",
    r"by turns": "interleaved",
    r"contenders?": "baseline",
    r"behind": "after",
    r"for ever": "always",
    r"die(s|d) of(?! a package)": "was killed by, failed with",
    r"spoil(s|t|ed)?": "damaged",
    r"mend(s|ed)?": "correct",
    r"without a word": "without a message",
    r"front door|stations?": "entry point, stage",
}
PRIVATE = re.compile("|".join(rf"(?P<w{i}>\b(?:{word})\b)" for i, word in enumerate(INSTEAD)), re.IGNORECASE)


def private_words(text: str) -> list[str]:
    """What is found in a text, and what to write in its place."""
    advice = list(INSTEAD.values())
    return [f"'{m.group()}' (write: {advice[int((m.lastgroup or 'w0')[1:])]})" for m in PRIVATE.finditer(text)]


def prose(page: str) -> str:
    """A page without generated tables and inline code; line numbers stay."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match.group().count("\n")

    return re.sub(r"`[^`\n]*`", "``", re.sub(r"<!-- (?s:.)*?<!-- end[^>]*-->", blank, page))


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the string literals of a module that are not documentation: messages, summaries, help."""
    tree = ast.parse(source)
    documented = {id(node.body[0].value) for node in ast.walk(tree) if _has_docstring(node)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in documented else None
        if isinstance(text, str) and " " in text:
            yield node.lineno, text


def _has_docstring(node: ast.AST) -> bool:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, documented) and ast.get_docstring(node) is not None


def found(places: Iterator[tuple[int, str]], path: Path) -> list[str]:
    where = path.relative_to(ROOT)
    return [f"{where}:{line}: {word}" for line, text in places for word in private_words(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_documents_use_the_words_of_the_field(page: Path) -> None:
    wrong = found(iter(enumerate(prose(page.read_text()).splitlines(), 1)), page)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_messages_use_the_words_of_the_field(package: str) -> None:
    wrong = [line for path in sorted((ROOT / package).rglob("*.py")) for line in found(strings(path.read_text()), path)]
    assert not wrong, "\n".join(wrong)


def test_private_words_are_found_in_pages_and_messages() -> None:
    assert private_words("The value lies in the arena; leftovers go through TVM") == [
        "'lies' (write: is stored, is at, is)",
        "'leftovers' (write: unsupported operator, remaining)",
    ]
    assert not private_words("there is no file; a standard layout; a code, its level and its scale")
    page = "codes lie here, `lies` not\n<!-- table: a -->\nleftovers\n<!-- end -->\nit stands\n"
    assert [bool(private_words(line)) for line in prose(page).splitlines()] == [True, False, False, False, True]
    code = '"""It stands."""\ndef f(n):\n    """It lies."""\n    raise ValueError(f"{n} stands alone")  # meets\n'
    assert [(line, len(private_words(text))) for line, text in strings(code)] == [(4, 1)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A file may be named by the end of its path; names in angle brackets or capitals stand for others."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"`([\w./-]+\.(?:py|c|h|md|json|svg))`", page.read_text()):
        assert f"/{name}\n" in f"/{listed}".replace("\n", "\n/") or name in NOT_HERE, f"{page.name}: {name}"


NOT_HERE = {
    "manifest.json", "report.json", "checkpoint.json", "kernels.c", "model.c", "model.h", "weights.c",
}  # files of bundles and checkpoints  # fmt: skip
