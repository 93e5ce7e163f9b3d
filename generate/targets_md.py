"""docs/targets.md: the targets of tvm_kernels/machines/targets/, what writes, compiles and runs their programs."""

from __future__ import annotations

from textwrap import wrap

from subbyte.tvm_kernels.emit.emitter import all_emitters
from subbyte.tvm_kernels.machines import Target, all_targets

PATH = "docs/targets.md"

HEAD = """# Targets

Written by `make generate` from `tvm_kernels/machines/` and `tvm_kernels/emit/`: do not edit.
[Adding a target](add-a-target.md) adds a file.
Target `host` is the machine that compiles, with all its CPU features. `subbyte doctor` shows which tools are installed.
"""


def text() -> str:
    """The page: tables of the targets, of the emitters and of the tools."""
    targets = sorted((target for target in all_targets() if target.name != "host"), key=lambda target: target.name)
    rows = [
        (f"`{t.name}`", t.summary, f"`{t.triple}`", ", ".join(sorted(t.features)) or "none", f"`{t.emitter.name}`")
        for t in targets
    ]
    emitters = [(f"`{e.name}`", e.summary, f"`{e.form.word}`") for e in sorted(all_emitters(), key=lambda e: e.name)]
    tools = [(f"`{t.name}`", _compilers(t), _runs(t)) for t in targets]
    packages = sorted({package for t in targets for package in t.packages})
    return "\n".join(
        [
            HEAD,
            *_table(("target", "machine", "triple", "CPU features", "emitter"), rows),
            "",
            "## Emitters",
            "",
            *_table(("emitter", "writes", "`target.emitter` of the manifest"), emitters),
            "",
            "## Tools",
            "",
            *_table(("target", "C compiler", "what runs its programs in `tests/device`"), tools),
            "",
            "Debian packages of all of them, which `.ci/run` installs:",
            "",
            *(f"    {line}" for line in wrap(f"apt install {' '.join(packages)}", 116, break_on_hyphens=False)),
            "",
        ]
    )


def _compilers(target: Target) -> str:
    own = [f"`{target.compiler.command}`"] if target.compiler else []
    return ", else ".join([*own, *(["zig"] if target.zig_target else [])])


def _runs(target: Target) -> str:
    return (
        f"`{' '.join(target.command('PROGRAM'))}`"
        if target.emulator
        else "no emulator: a machine that has its CPU features"
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
