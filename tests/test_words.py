"""Documents, messages, docstrings and comments use the words of the field: docs/glossary.md defines them, INSTEAD
replaces the others.

To keep another word out, add a row. Not read: measured tables, inline code, titles in quotation marks.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import PACKAGES

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
C_CODE = sorted((ROOT / "runtime" / "c").rglob("*.[ch]"))

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
    r"(packed|loose|eight|\d+|as|(products?|sums?|tensors?|words) of) signs|signs with signs": "binary values, bits",
    r"at work": "working on",
    r"(held|hold) as": "stored as",
    r"shar(e|es|ed|ing) out": "distributes over",
    r"padded places?": "padding",
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
    r"wants": "expects, needs",
    r"to read alone": "read-only",
    r"of ours": "of the dialect, of subbyte",
    r"(bytes?|bits|pJ) an? (element|weight|code|channel|thread|operation|row)": "per",
    r"settle[sd]?": "resolves, decides",
    r"(?<!there )(?<!that )(is|are) no(?! (longer|more))": "is not a",
}
PRIVATE = re.compile("|".join(rf"(?P<w{i}>\b(?:{word})\b)" for i, word in enumerate(INSTEAD)), re.IGNORECASE)


def private_words(text: str) -> list[str]:
    """What is found in a text, and what to write in its place."""
    advice = list(INSTEAD.values())
    return [f"'{m.group()}' (write: {advice[int((m.lastgroup or 'w0')[1:])]})" for m in PRIVATE.finditer(text)]


def prose(page: str) -> str:
    """A page without generated tables and inline code; line numbers stay."""
    return _without_code(re.sub(r"<!-- (?s:.)*?<!-- end[^>]*-->", _newlines, page))


def _newlines(match: re.Match[str]) -> str:
    return "\n" * match.group().count("\n")


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "``", text)


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the string literals of a module that are not documentation: messages, summaries, help."""
    tree = ast.parse(source)
    documented = {id(node.body[0].value) for node in ast.walk(tree) if _has_docstring(node)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in documented else None
        if isinstance(text, str) and " " in text:
            yield node.lineno, text


def documentation(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings and comments of a module, without inline code and titles."""
    for node in ast.walk(ast.parse(source)):
        if _has_docstring(node):
            docstring = node.body[0].value
            yield from enumerate(_plain(docstring.value).splitlines(), docstring.lineno)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], _plain(token.string)


def c_text(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the comments and string literals of C code, without inline code."""
    for match in C_TEXT.finditer(source):
        first = source.count("\n", 0, match.start()) + 1
        yield from enumerate(_without_code(match.group()).splitlines(), first)


# A string before a comment: "//" is text in it.
C_TEXT = re.compile(r""""(?:[^"\\\n]|\\.)*"|/\*(?s:.)*?\*/|//[^\n]*""")


def _plain(text: str) -> str:
    return _without_code(re.sub(r'"[^"]*"', _newlines, text))


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


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_and_comments_use_the_words_of_the_field(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    wrong = [line for path in paths for line in found(documentation(path.read_text()), path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", C_CODE, ids=lambda p: p.name)
def test_c_code_uses_the_words_of_the_field(path: Path) -> None:
    """Its comments and messages."""
    wrong = found(c_text(path.read_text()), path)
    assert not wrong, "\n".join(wrong)


def test_private_words_are_found_where_they_are_and_plain_words_are_not() -> None:
    assert private_words("The value lies in the arena; leftovers go through TVM") == [
        "'lies' (write: is stored, is at, is)",
        "'leftovers' (write: unsupported operator, remaining)",
    ]
    assert not private_words("there is no file; a standard layout; a code, its level and its scale")
    assert private_words("'x' is no scalar")
    assert all(private_words(text) for text in ("words of 32 signs", "held as codes", "tiles are shared out"))
    assert not private_words("levels of both signs; the sign of x; a part held in memory; lines of a cache")
    assert not private_words("that is no longer so; as you want it")
    page = "codes lie here, `lies` not\n<!-- table: a -->\nleftovers\n<!-- end -->\nit stands\n"
    assert [bool(private_words(line)) for line in prose(page).splitlines()] == [True, False, False, False, True]
    code = '"""It stands."""\ndef f(n):\n    """It lies."""\n    raise ValueError(f"{n} stands alone")  # meets\n'
    assert [(line, len(private_words(text))) for line, text in strings(code)] == [(4, 1)]
    assert [line for line, text in documentation(code) if private_words(text)] == [1, 3, 4]
    code = '/* it\n * stands */\nint lies; // `lies`, it lies\nfail("no // \\" house", \'"\');\n'
    assert [line for line, text in c_text(code) if private_words(text)] == [2, 3, 4]
    assert not private_words(_plain('"Estimator Meets\nEquilibrium", 2023; see `lies`'))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """A file may be named by the end of its path; names in angle brackets or capitals stand for others."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"`([\w./-]+\.(?:py|c|h|md|json|svg))`", page.read_text()):
        assert f"/{name}\n" in f"/{listed}".replace("\n", "\n/") or name in NOT_HERE, f"{page.name}: {name}"


NOT_HERE = {
    "manifest.json", "report.json", "checkpoint.json", "kernels.c", "model.c", "model.h", "weights.c", "tokenizer.json",
}  # files of bundles, checkpoints and users  # fmt: skip
