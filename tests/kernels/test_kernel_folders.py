"""The folders of kernel rows: loops lie with the rows that use them; `.importlinter` keeps the directions."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import subbyte.tvm_kernels.kernels as kernels

ROOT = Path(kernels.__file__).parent


def imports_of_kernels() -> set[tuple[str, str]]:
    """(importing module, imported module), both relative to the package of kernels."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    arrows = set()
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(kernels.__name__):
                package = str(node.module).removeprefix(kernels.__name__).lstrip(".")
                named = [f"{package}.{alias.name}".lstrip(".") for alias in node.names]
                arrows |= {(name, target if target in modules else package) for target in named}
    return {(name, target) for name, target in arrows if target in modules}


def folder(module: str) -> str:
    return module.rpartition(".")[0]


def test_what_the_rows_of_one_folder_alone_use_lies_in_it() -> None:
    users = defaultdict(set)
    for name, target in imports_of_kernels():
        users[target].add(folder(name))
    assert len(users) > 20
    assert {module: used for module, used in users.items() if len(used) == 1 and folder(module) not in used} == {}


def test_an_architecture_imports_no_other() -> None:
    """The register and the code generator (""), `tir`, `any_cpu` in this order; above them a folder an architecture."""
    arrows = {(folder(name), folder(target)) for name, target in imports_of_kernels()}
    between = {(name, target) for name, target in arrows if name != target}
    order = ["", "tir", "any_cpu"]
    assert len(between) >= 6
    for name, target in between:
        assert target in order, f"{name} imports {target}"
        assert name not in order or order.index(name) > order.index(target), f"{name} imports {target}"
