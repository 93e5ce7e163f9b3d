"""docs/architecture.svg: the packages, in layers, and which imports which, read from the source.

An arrow is drawn only where no longer path says the same. Below a package's name: the libraries that it imports.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Container, Iterator
from pathlib import Path
from statistics import fmean
from textwrap import wrap

PATH = "docs/architecture.svg"
ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 216, 66, 250, 108, 16
LETTERS = 40  # of a line of a box
ARROW = '<marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'


def sources(root: Path = ROOT) -> dict[str, str]:
    """The text of every module by its dotted name: the folders of the repository are packages of subbyte."""
    folders = [path.parent for path in root.glob("*/__init__.py")]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return {dotted_name(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}


def dotted_name(path: Path) -> str:
    """formats/levels.py -> subbyte.formats.levels"""
    parts = path.with_suffix("").parts[: -1 if path.name == "__init__.py" else None]
    return ".".join(parts if parts[0] == "subbyte" else ("subbyte", *parts))


def imports(node: ast.AST, modules: Container[str], *, typed: bool = True) -> set[str]:
    """Every module that the code may import: of `from a import b` a.b where `modules` has it, else a.

    Imports in functions count; those under TYPE_CHECKING only with `typed`.
    """
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name in modules else str(node.module) for name in inner]
    for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    children = node.orelse if isinstance(node, ast.If) and for_types and not typed else ast.iter_child_nodes(node)
    return set(names).union(*(imports(child, modules, typed=typed) for child in children))


def _package(module: str) -> str:
    return ".".join(module.split(".")[1:2])


class Packages:
    """Arrows between packages, and the libraries that each imports."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.arrows: set[tuple[str, str]] = set()
        self.libraries: dict[str, set[str]] = defaultdict(set)
        for module, text in texts.items():
            package = _package(module)
            if package in ("", "__main__"):  # the front door names what all others offer
                continue
            self.libraries[package].update()
            for name in imports(ast.parse(text), texts):
                if name in texts and _package(name) not in (package, ""):
                    self.arrows.add((package, _package(name)))
                top = name.split(".")[0]
                if name not in texts and top not in ("subbyte", *sys.stdlib_module_names):
                    self.libraries[package].add(top)

    def below(self, package: str) -> set[str]:
        """What a package imports, itself or through others."""
        found = {other for one, other in self.arrows if one == package}
        return found.union(*(self.below(other) for other in found))

    def drawn(self) -> list[tuple[str, str]]:
        """The arrows that no longer path implies."""
        through = {(one, far) for one, other in self.arrows for far in self.below(other)}
        return sorted(self.arrows - through)

    def layers(self) -> list[list[str]]:
        """Packages from the one that no other imports down: each below all that import it."""
        depth: dict[str, int] = {}
        for package in sorted(self.libraries, key=lambda name: -len(self.below(name))):
            above = [one for one, other in self.arrows if other == package]
            depth[package] = max((depth[name] + 1 for name in above), default=0)
        return [sorted(name for name in depth if depth[name] == level) for level in range(max(depth.values()) + 1)]


def _places(layers: list[list[str]], arrows: Container[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """The upper left corner of each box: a layer lies in the middle below the packages that import it."""
    middles: dict[str, float] = {}
    for layer in layers:
        above = {name: [x for one, x in middles.items() if (one, name) in arrows] or [0.0] for name in layer}
        wanted = {name: fmean(above[name]) for name in layer}
        for column, name in enumerate(sorted(layer, key=lambda name: (wanted[name], name))):
            middles[name] = fmean(wanted.values()) + (column - (len(layer) - 1) / 2) * ACROSS
    left = min(middles.values()) - MARGIN
    return {name: (middles[name] - left, MARGIN + row * DOWN) for row, layer in enumerate(layers) for name in layer}


def _box(name: str, libraries: set[str], x: float, y: float) -> Iterator[str]:
    middle = x + WIDTH / 2
    shape = f'x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="8"'
    yield f'<rect {shape} fill="#eef4fb" stroke="#2b5f9e" stroke-width="1.5"/>'
    yield f'<text x="{middle:g}" y="{y + 20:g}" font-size="15" font-weight="bold" text-anchor="middle">{name}</text>'
    for row, line in enumerate(wrap(", ".join(sorted(libraries)) or "the standard library", LETTERS)):
        at = f'x="{middle:g}" y="{y + 37 + 13 * row:g}"'
        yield f'<text {at} font-size="10" text-anchor="middle" fill="#4a6785">{line}</text>'


def text() -> str:
    """The drawing."""
    packages = Packages(sources())
    layers = packages.layers()
    arrows = packages.drawn()
    places = _places(layers, arrows)
    wide = max(x for x, _ in places.values()) + WIDTH + MARGIN
    high = 2 * MARGIN + (len(layers) - 1) * DOWN + HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {high:g}" '
        f'font-family="Helvetica, Arial, sans-serif" fill="#16324f" role="img" '
        f'aria-label="The packages of subbyte: which imports which">',
        f'<defs>{ARROW}<path d="M0 0L10 5L0 10z" fill="#2b5f9e"/></marker></defs>',
    ]
    for one, other in arrows:
        (x1, y1), (x2, y2) = places[one], places[other]
        ends = x1 + WIDTH / 2, y1 + HEIGHT, x2 + WIDTH / 2, y2 - 2
        lines.append(
            '<line x1="{:g}" y1="{:g}" x2="{:g}" y2="{:g}" stroke="#2b5f9e" stroke-width="1.5" '
            'marker-end="url(#a)"/>'.format(*ends)
        )
    for name, (x, y) in places.items():
        lines += _box(name, packages.libraries[name], x, y)
    return "\n".join([*lines, "</svg>", ""])
