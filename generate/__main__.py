"""Write the files of the repository that are made from its code: `python generate`, which is `make generate`.

Each other program in this folder makes one file: PATH, relative to the repository, and text().
tests/test_generated.py compares.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def generated() -> dict[str, str]:
    """The text of every generated file, by its path in the repository."""
    files = {}
    for program in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        spec = importlib.util.spec_from_file_location(program.stem, program)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        files[module.PATH] = module.text()
    return files


def outdated(root: Path = ROOT) -> list[str]:
    """Paths of the generated files whose text is another one, or that are missing."""
    return [path for path, text in generated().items() if _read(root / path) != text.encode()]


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


if __name__ == "__main__":
    for name in outdated():
        (ROOT / name).write_bytes(generated()[name].encode())
        print(f"{name}: written")
