"""`compile`: an ONNX file to a `.subbyte` bundle for a target, with a report on every operator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subbyte import __version__
from subbyte.errors import CompileError, UsageError
from subbyte.files.output import check_temporary, checked_output, write_file
from subbyte.onnx_files.loader import OnnxFile, open_onnx
from subbyte.runtime.bundle import BENCH, write_bundle
from subbyte.runtime.manifest import OperatorFacts
from subbyte.tvm_kernels.emit import Emitted, Golden, compile_plan
from subbyte.tvm_kernels.emit.board_memory import ram_of
from subbyte.tvm_kernels.emit.members import check_archive
from subbyte.tvm_kernels.emit.names import check_name
from subbyte.tvm_kernels.error_context import names_its_errors, working_on
from subbyte.tvm_kernels.explanation import Explanation
from subbyte.tvm_kernels.golden import golden_tensors
from subbyte.tvm_kernels.golden_inputs import Given
from subbyte.tvm_kernels.graph import Graph
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.machines import Target, get_target
from subbyte.tvm_kernels.plan import KernelCall, Plan, Tensor
from subbyte.tvm_kernels.replay import Child, Origin, reason_not_to_replay
from subbyte.tvm_kernels.replay import replay as replayed
from subbyte.tvm_kernels.states import with_states

if TYPE_CHECKING:
    import onnx

    Model = str | Path | onnx.ModelProto | OnnxFile


@dataclass(frozen=True, kw_only=True)
class Row(OperatorFacts):
    """What became of one operator."""

    tiles: int
    passed_over: tuple[tuple[str, str], ...]  # better kernels, and why not


@dataclass(frozen=True)
class CompileReport:
    """The result of `compile`; printed by the command line, and report.json of the bundle. All sizes in bytes."""

    name: str
    target: str
    features: tuple[str, ...]
    rows: tuple[Row, ...]
    arena_bytes: int
    workspace_bytes: int  # for each thread
    weights_bytes: int
    state_bytes: int
    golden: str  # what made the golden outputs
    not_replayed: str | None  # why the bundle was not run on them; None: it was, and gave them
    compiler: str | None = None  # what compiled the library's C and linked it, and why not another
    glibc: str | None = None  # the oldest that the library loads on; None where it needs none
    sizes: dict[str, int] = field(default_factory=dict)  # of C sources by section: text, data, bss, weights
    ram: dict[str, int] = field(default_factory=dict)  # of a program by what it holds (emit/board_memory.py: ram_of)
    notes: tuple[str, ...] = ()  # about the file as a whole
    path: Path | None = None
    explanation: Explanation | None = None  # where `compile` was given one

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """One line for each operator that fell back to float: its name and the reason."""
        return tuple(f"{row.name}: {row.fallback}" for row in self.rows if row.fallback)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(row.macs for row in self.rows)

    @property
    def flash_bytes(self) -> int | None:
        """Code and constants on a microcontroller; None where no cross-compiler could tell."""
        return self.sizes["text"] + self.sizes["data"] if "text" in self.sizes else None

    @property
    def ram_bytes(self) -> int:
        """Of a program that runs the model in one thread; on a board with its stack and, as linked, its variables."""
        return sum(self.ram.values())

    @property
    def replay(self) -> str:
        """A sentence on the golden run."""
        outputs = f"golden outputs of {self.golden}"
        return f"{outputs}: replayed" if self.not_replayed is None else f"{outputs}: not replayed, {self.not_replayed}"

    @property
    def library(self) -> str | None:
        """A sentence on library.so; None where there is none."""
        if self.compiler is None:
            return None
        loads = f", for glibc {self.glibc} and later" if self.glibc else ""
        return f"library.so{loads}: compiled by {self.compiler}"

    def __str__(self) -> str:
        products = [row for row in self.rows if row.macs]
        width = max((len(row.name) for row in products), default=0)
        return "\n".join(
            [
                f"{self.name} for {self.target}: {len(self.rows)} operators, {self.macs:,} MACs",
                f"bytes: weights {self.weights_bytes:,}, arena {self.arena_bytes:,}, "
                + (f"state {self.state_bytes:,}, " if self.state_bytes else "")
                + f"workspace {self.workspace_bytes:,} a thread",
                *(f"{row.name:{width}}  {row.activation} x {row.weights}: {row.kernel}" for row in products),
                *(f"in float: {line}" for line in self.fallbacks),
                *(f"note: {line}" for line in self.notes),
                *([self.library] if self.library else []),
                self.replay,
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        plain = asdict(replace(self, explanation=None))
        plain.pop("path")
        plain.pop("explanation")
        return {
            **plain,
            **({"explanation": self.explanation.to_json()} if self.explanation is not None else {}),
            "fallbacks": list(self.fallbacks),
            "macs": self.macs,
            "flash_bytes": self.flash_bytes,
            "ram_bytes": self.ram_bytes,
        }


LEAST_TEMPORARY = 4 << 20  # bytes; the runtime's objects and a model of 45 kB take 1.4 MB (2026, x86-64)


@names_its_errors
def compile(
    model: Model,
    output: str | Path | None = None,
    *,
    target: str | Target = "host",
    strict: bool = False,
    name: str | None = None,
    golden_inputs: Given | None = None,
    seed: int = 0,
    keep: str | Path | None = None,
    replay: bool = True,
    explain: Explanation | None = None,
    archive: bool = False,
    state: Sequence[str] = (),
) -> CompileReport:
    """Compile an ONNX model into a bundle at `output` (default: the model's path with .subbyte).

    `name`: what the model is called, a C identifier that its symbols in C carry; after the file or the graph if None.
    `golden_inputs`: arrays or .npy files in a list, arrays by name in a dict or an .npz file; random ones from `seed`
    that the model accepts if None. `keep`: a folder that gets the generated files, to look at. With `replay` a bundle
    that this machine can run must give its golden outputs, in a process of its own, before it is put in place.
    `archive`: with library.a and subbyte.h, to link the model into a C program. `explain` records which rules and
    kernel rows declined, and why, also where this raises; it is part of the report.
    `state`: pairs `in=out` of a graph input and the output that is its value in the next run, beside those that the
    file declares; they are not among the inputs and outputs of the bundle.
    Nothing is written at `output` unless all went well. Raises UsageError, ModelError, ToolchainError; CompileError
    also for a bundle that differs from its golden outputs, and with `strict` for a layer that would fall back to float.
    """
    from subbyte.tvm_kernels.assembly import assemble
    from subbyte.tvm_kernels.lowering import lower_graph, name_of

    if name is not None:
        check_name(name)
    chosen = target if isinstance(target, Target) else get_target(target)
    chosen.check_cpu()
    check_archive(chosen, archive)
    path = model.path if isinstance(model, OnnxFile) else model
    if output is None and isinstance(path, (str, Path)):
        output = Path(path).with_suffix(".subbyte")
    if output is None:
        raise UsageError("a model in memory has no path: say where the bundle goes with output=")
    with checked_output(output, "output", *_paths(path), *_paths(golden_inputs)):
        check_temporary(LEAST_TEMPORARY)
        working_on("reading the file")
        file = with_states(open_onnx(model), state)
        called = name_of(model) if name is None else name

        def lowered(explanation: Explanation | None = None) -> tuple[Graph, Plan]:
            with code_generator(chosen.emitter.code_generator, chosen.multiplies):
                graph = lower_graph(file, chosen.features, strict=strict, name=called, explanation=explanation)
                return graph, assemble(graph, chosen.features)

        # The graph holds every weight as codes and levels: it goes, and a replay that fails lowers the file again.
        plan = lowered(explain)[1]
        plan.source.update(onnx_sha256=file.sha256, onnx_bytes=file.nbytes)
        working_on("computing golden outputs")
        golden = golden_tensors(file, plan, golden_inputs, seed)
        return bundle_plan(plan, chosen, output, golden, keep, Origin(lambda: lowered()[0], file), replay, archive)


def bundle_plan(
    plan: Plan,
    target: Target,
    output: str | Path,
    golden: Golden | None = None,
    keep: str | Path | None = None,
    origin: Origin | None = None,
    replay: bool = True,
    archive: bool = False,
) -> CompileReport:
    """Generate code for a plan, replay the golden run and write the bundle; what `compile` does after lowering.

    `origin`: what the plan was made of, to name what differs.
    """
    reason = reason_not_to_replay(target, golden) if replay else "asked not to"
    with nullcontext() if reason else Child() as child:
        emitted = compile_plan(plan, target, golden, archive=archive)
        report = _report(plan, target, emitted, "none" if golden is None else golden.engine, reason, Path(output))
        working_on("writing the bundle")
        members = dict(emitted.members)
        members["report.json"] = json.dumps(report.to_json(), indent=1).encode()
        if keep is not None:
            _keep(members, Path(keep))

        def check(written: Path) -> None:
            if golden is not None and child is not None:
                replayed(child, written, plan, golden, origin)

        manifest = _manifest(plan, target, emitted)
        if golden is not None and (plan.states or any(golden.ties)):
            runs = {"runs": golden.runs} if plan.states else {}
            manifest["golden"] = {"ties": list(golden.ties), **runs}
        write_bundle(output, manifest, members, check)
    return report


def _paths(given: object) -> list[str | Path]:
    """The files among what `compile` was given: one, in a list, or in a dict."""
    members = given.values() if isinstance(given, Mapping) else given if isinstance(given, (list, tuple)) else [given]
    return [one for one in members if isinstance(one, (str, Path))]


def _report(
    plan: Plan, target: Target, emitted: Emitted, engine: str, not_replayed: str | None, path: Path
) -> CompileReport:
    return CompileReport(
        name=plan.name,
        target=target.name,
        features=tuple(sorted(target.features)),
        rows=tuple(_row(call, tiles) for call, tiles in zip(plan.calls, emitted.tiles, strict=True)),
        arena_bytes=plan.arena_bytes,
        workspace_bytes=emitted.workspace_bytes,
        weights_bytes=len(plan.weights),
        state_bytes=plan.state_bytes,
        golden=engine,
        not_replayed=not_replayed,
        compiler=emitted.compiler,
        glibc=emitted.glibc,
        sizes=emitted.sizes,
        ram=ram_of(plan, emitted.workspace_bytes, target.board, emitted.linked_ram),
        notes=(*plan.notes, *emitted.notes),
        path=path,
        explanation=plan.explanation,
    )


def _row(call: KernelCall, tiles: int) -> Row:
    return Row(**call.facts, tiles=tiles, passed_over=call.passed_over)


# ---- manifest ----


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": [int(n) for n in tensor.shape]}


def _states(plan: Plan) -> dict[str, Any]:
    """What the manifest says of states; nothing where there is none."""
    if not plan.states:
        return {}
    rows = [{**_tensor(state.tensor), "output": state.output} for state in plan.states]
    return {"states": rows, "state_bytes": plan.state_bytes}


def _traced(tensor: Tensor) -> dict[str, Any]:
    return {
        "tensor": tensor.name,
        "storage": tensor.storage,
        "dtype": tensor.dtype,
        "zero_point": int(tensor.zero_point),
        "shape": [int(n) for n in tensor.shape],
        "layout": tensor.layout,
        "channels": int(tensor.channels),
        "space": tensor.place.space,
        "offset": int(tensor.place.offset),
        "bytes": int(tensor.nbytes),
    }


def _operator(call: KernelCall, tiles: int) -> dict[str, Any]:
    return {**call.facts, "tiles": tiles, "outputs": [_traced(tensor) for tensor in call.outputs]}


def _manifest(plan: Plan, target: Target, emitted: Emitted) -> dict[str, Any]:
    packages = {"tvm": "apache-tvm", "onnx": "onnx"}
    return {
        "name": plan.name,
        "versions": {"subbyte": __version__, **{key: metadata.version(package) for key, package in packages.items()}},
        "target": {
            "name": target.name,
            "triple": target.triple,
            "emitter": target.emitter.form.word,
            "features": sorted(target.features),
            **({"glibc": emitted.glibc} if emitted.glibc else {}),
        },
        "source": plan.source,
        "inputs": [_tensor(t) for t in plan.inputs],
        "outputs": [_tensor(t) for t in plan.outputs],
        **_states(plan),
        "arena_bytes": plan.arena_bytes,
        "workspace_bytes": emitted.workspace_bytes,
        "weights_bytes": len(plan.weights),
        "operators": [_operator(call, tiles) for call, tiles in zip(plan.calls, emitted.tiles, strict=True)],
    }


def _keep(members: Mapping[str, bytes], folder: Path) -> None:
    for name, data in members.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CompileError(f"cannot keep {name} in {folder}: {error}") from error
        write_file(path, data, executable=name == BENCH)
