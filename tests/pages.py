"""The programs of the documents: the blocks of a page in order, run as they stand in a process of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Container
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))  # folders, subbyte/ among them


def text_of(page: str) -> str:
    """A document by its path in the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def python_blocks(page: str) -> list[str]:
    """The fenced blocks of Python of a page."""
    return re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)


def commands(page: str, first: str) -> str:
    """The lines of shell, indented by four, of the block whose first line starts so."""
    lines = text_of(page).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"    {first}"))
    end = next(index for index in range(start, len(lines)) if not lines[index].startswith("    "))
    return "\n".join(line[4:] for line in lines[start:end])


def run(program: str, folder: Path, **environment: str) -> str:
    """Run a program in that folder; what it printed."""
    script = folder / "page.py"
    script.write_text(program, encoding="utf-8")
    return _output([sys.executable, str(script)], folder, environment)


def shell(lines: str, folder: Path) -> str:
    """Run lines of shell in that folder, up to the first that fails; what they printed."""
    return _output(["sh", "-e", "-c", lines], folder, {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})


def _output(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=900, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def run_copy(program: str, folder: Path) -> str:
    """Run a program in that folder with the package that `copy_package` put there; what it printed."""
    taken = f"import subbyte; assert subbyte.__file__.startswith({str(folder)!r})\n"
    return run(taken + program, folder, PYTHONPATH=str(folder))


def new_file(page: str) -> str:
    """The one file that a page adds, in the package: its "a module `name` in `folder/`"."""
    ((name, folder),) = re.findall(r"a module `(\w+)` in `([\w/]+)/`", text_of(page))
    return f"{folder}/{name}.py"


def copy_package(folder: Path, without: Container[str] = ()) -> Path:
    """The package as an installation has it, in that folder, without some of its files; PYTHONPATH=folder takes it."""
    package = folder / "subbyte"
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "subbyte", package, ignore=unwanted)
    for name in set(PACKAGES) - {"subbyte"}:
        shutil.copytree(ROOT / name, package / name, ignore=unwanted)
    for path in list(package.rglob("*.py")):
        if path.relative_to(package).as_posix() in without:
            path.unlink()
    return package
