"""From a kernel's TIR to a plain C function: typed pointers and a range of tiles, no TVM at run time.

    int32_t name(T0 *p0, T1 *p1, ..., int32_t begin, int32_t end);

The one outermost `parallel` loop runs from `begin` to `end`; its extent is the number of tiles that the runtime
distributes over threads. Inside it, a statement under the attribute ONCE runs where the attribute's value is true, and
in tile `begin`: so consecutive tiles on a thread can share what one of them has written to the workspace. A body
without such a loop, or with statements beside it, is one tile; unless the attribute TILES of the function gives the
number of tiles: then all its parallel loops have that extent and run from `begin` to `end`, and the statements around
them run in every call. Scratch of 1,024 bytes or more that TIR allocates becomes a part of the running thread's
workspace, passed as a further pointer. Generated code always returns 0: a function with the attribute CHECKS, of one
tile, writes a failed check to its last buffer, int64 [4], or -1 to its first element; the trampoline converts that to a
status.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType, StringImm
from tvm.tirx import AttrStmt, DeclBuffer, Evaluate, For, ForKind, IntImm, PrimFunc, Return, SeqStmt, Stmt, Var

from subbyte.errors import CompileError
from subbyte.tvm_kernels.c_text import plain_c, printable
from subbyte.tvm_kernels.error_context import working_on
from subbyte.tvm_kernels.memory import aligned
from subbyte.tvm_kernels.object_file import object_bytes

C_TYPES = {
    "float32": "float",
    "float64": "double",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "int64": "int64_t",
    "uint64": "uint64_t",
    "bool": "uint8_t",
}
# TVM keeps smaller allocations in registers or on the stack; for larger ones it would call its runtime.
LARGEST_ON_STACK = 1023
ONCE = "subbyte.once"
TILES = "subbyte.tiles"
CHECKS = "subbyte.checks"
RUNTIME_SYMBOL = re.compile(rb"__(?:TVM(?:Backend|FFI)\w+|tvm_ffi__\w+)")


@dataclass(frozen=True)
class CFunction:
    """The C function made of one kernel."""

    symbol: str
    dtypes: tuple[str, ...]  # of the pointers that the plan passes
    tiles: int
    scratch: tuple[tuple[str, int], ...] = ()  # dtype and bytes of pointers into the workspace, after those
    checks: bool = False  # it has the attribute CHECKS

    @property
    def scratch_bytes(self) -> int:
        """Workspace bytes that `scratch` takes, each piece aligned."""
        return sum(aligned(nbytes) for _, nbytes in self.scratch)

    def declaration(self) -> str:
        """The prototype in C."""
        dtypes = [*self.dtypes, *(dtype for dtype, _ in self.scratch)]
        pointers = [f"{C_TYPES[dtype]} *p{i}" for i, dtype in enumerate(dtypes)]
        return f"int32_t {self.symbol}({', '.join([*pointers, 'int32_t begin', 'int32_t end'])});"

    def trampoline(self) -> str:
        """C of the `subbyte_kernel` that unpacks its arguments and calls the function."""
        values = [f"({C_TYPES[dtype]} *)args[{i}]" for i, dtype in enumerate(self.dtypes)]
        place = 0
        for dtype, nbytes in self.scratch:
            values.append(f"({C_TYPES[dtype]} *)(void *)((uint8_t *)args[{len(self.dtypes)}] + {place})")
            place += aligned(nbytes)
        call = f"{self.symbol}({', '.join([*values, 'begin', 'end'])})"
        head = f"static int32_t run_{self.symbol}(void *const *args, int32_t begin, int32_t end)"
        if not self.checks:
            return f"{head} {{\n  return {call};\n}}"
        found = f"*(const int64_t *)args[{len(self.dtypes) - 1}]"
        return f"{head} {{\n  (void){call};\n  return {found} < 0 ? SUBBYTE_OK : SUBBYTE_BAD_INDEX;\n}}"


@dataclass(frozen=True)
class Kernels:
    """Kernels compiled together: an object file or C text, and what each is called with."""

    code: bytes
    signatures: tuple[CFunction, ...]


def _passes(vectorize: bool) -> Any:
    """The default pipeline for a CPU (tvm/s_tir/pipeline.py) up to the packed API, without the passes for GPUs."""
    blocks, tir = s_tir.transform, tirx.transform
    return tvm.transform.Sequential(
        [
            blocks.CanonicalizeLoop(),
            blocks.LowerInitBlock(),
            blocks.PlanAndUpdateBufferAllocationLocation(),
            blocks.ConvertBlocksToOpaque(),
            blocks.CompactBufferAllocation(),
            blocks.LowerMatchBuffer(),
            blocks.StmtSimplify(),
            blocks.AnnotateIrregularLoop(),
            blocks.LowerOpaqueBlock(),
            tir.FlattenBuffer(),
            tir.BF16ComputeLegalize(),
            tir.NarrowDataType(32),
            blocks.LoopPartition(),
            tir.VectorizeLoop(vectorize),
            tir.StorageRewrite(),
            blocks.HoistIfThenElse(),
            tir.UnrollLoop(),
            blocks.RenormalizeSplitPattern(),
            tir.StmtSimplify(),
            tir.RemoveNoOp(),
            blocks.RewriteUnsafeSelect(),
            tir.CommonSubexprElim(),
            tir.VerifyMemory(),
        ]
    )


def _statements(stmt: Stmt) -> list[Stmt]:
    """A body as a flat list."""
    if isinstance(stmt, SeqStmt):
        return [inner for part in stmt.seq for inner in _statements(part)]
    return [stmt]


def _is_nothing(stmt: Stmt) -> bool:
    return isinstance(stmt, Evaluate) and isinstance(stmt.value, IntImm)


def _constant(value: Any) -> int | None:
    return int(value.value) if isinstance(value, IntImm) else None


def _nbytes(buffer: Any) -> int | None:
    """Bytes of a buffer, or None if its shape is not constant."""
    dtype = tvm.DataType(str(buffer.dtype))
    total = (int(dtype.bits) * int(dtype.lanes) + 7) // 8
    for axis in buffer.shape:
        extent = _constant(axis)
        if extent is None:
            return None
        total *= extent
    return total


def buffer_bytes(buffer: Any) -> int:
    """Bytes of a kernel's buffer parameter; raises CompileError for one whose shape is not constant."""
    if not tirx.is_buffer_var(buffer):
        raise CompileError(f"parameter {buffer.name} is not a buffer; kernels have only buffer parameters")
    nbytes = _nbytes(buffer)
    if nbytes is None:
        raise CompileError(f"parameter {buffer.name} has no constant shape; a plan is for fixed shapes")
    return nbytes


class _Scratch:
    """Makes a parameter of each large allocation."""

    def __init__(self) -> None:
        self.pointers: list[Any] = []
        self.pieces: list[tuple[str, int]] = []

    def __call__(self, stmt: Stmt) -> Stmt:
        if not isinstance(stmt, tirx.AllocBuffer):
            return stmt
        nbytes = _nbytes(stmt.buffer)
        if nbytes is None or nbytes <= LARGEST_ON_STACK:
            return stmt
        pointer = Var(f"scratch{len(self.pieces)}", _pointer_to(stmt.buffer))
        self.pointers.append(pointer)
        self.pieces.append((str(stmt.buffer.dtype), nbytes))
        return DeclBuffer(stmt.buffer, data=pointer)


def _pointer_to(buffer: Any) -> PointerType:
    return PointerType(PrimType(str(buffer.dtype)))


def _serial(stmt: Stmt) -> Stmt:
    if isinstance(stmt, For) and stmt.kind == ForKind.PARALLEL:
        return For(stmt.loop_var, stmt.min, stmt.extent, ForKind.SERIAL, stmt.body, annotations=stmt.annotations)
    return stmt


def _once(first: Callable[[Any], Any]) -> Callable[[Stmt], Stmt]:
    """Replaces ONCE by a condition; `first` extends it by the first tile of a call."""

    def change(stmt: Stmt) -> Stmt:
        if isinstance(stmt, AttrStmt) and stmt.attr_key == ONCE:
            return tirx.IfThenElse(first(stmt.value), stmt.body, None)
        return stmt

    return change


def on_one_thread(function: PrimFunc) -> PrimFunc:
    """The function with serial loops for parallel ones: threads of TVM would share one workspace."""
    return function.with_body(_map(_map(function.body, _once(lambda value: value)), _serial))


def _map(stmt: Stmt, change: Callable[[Stmt], Stmt]) -> Stmt:
    """`change` applied to every statement, inner ones first."""
    if isinstance(stmt, SeqStmt):
        stmt = SeqStmt([_map(part, change) for part in stmt.seq])
    elif isinstance(stmt, For):
        body = _map(stmt.body, change)
        stmt = For(stmt.loop_var, stmt.min, stmt.extent, stmt.kind, body, None, stmt.annotations, stmt.step)
    elif isinstance(stmt, tirx.While):
        stmt = tirx.While(stmt.condition, _map(stmt.body, change))
    elif isinstance(stmt, AttrStmt):
        stmt = AttrStmt(stmt.node, stmt.attr_key, stmt.value, _map(stmt.body, change))
    elif isinstance(stmt, tirx.IfThenElse):
        otherwise = None if stmt.else_case is None else _map(stmt.else_case, change)
        stmt = tirx.IfThenElse(stmt.condition, _map(stmt.then_case, change), otherwise)
    return change(stmt)


def _between(loop: For, begin: Any, end: Any, body: Stmt) -> For:
    """A serial loop over tiles begin .. end-1; TVM may use int64 for the loop variable, if indices are int64."""
    kind = loop.loop_var.ty
    first, extent = begin.astype(kind), (end - begin).astype(kind)
    return For(loop.loop_var, first, extent, ForKind.SERIAL, body, annotations=loop.annotations)


def _range(tiles: int, begin: Any, end: Any, stmt: Stmt) -> Stmt:
    """A parallel loop over all tiles as a loop over tiles begin .. end-1."""
    if not (isinstance(stmt, For) and stmt.kind == ForKind.PARALLEL):
        return stmt
    if _constant(stmt.min) != 0 or _constant(stmt.extent) != tiles:
        raise CompileError(
            f"a parallel loop of {stmt.extent} in a kernel of {tiles} tiles; all must run over the tiles"
        )
    return _between(stmt, begin, end, stmt.body)


def _or_first(tile: Any, begin: Any, value: Any) -> Any:
    return tirx.Or(value, tile == begin.astype(tile.ty))


def _plain(function: PrimFunc, wanted: Wanted, target: Any) -> tuple[PrimFunc, CFunction]:
    """One lowered function with typed pointers for buffers and the tiles begin .. end-1 of its parallel loop."""
    pointers = []
    declared: list[Stmt] = []
    for param in function.params:
        if not tirx.is_buffer_var(param):
            raise CompileError(
                f"{wanted.called}: parameter {param.name} is not a buffer; kernels have only buffer parameters"
            )
        if str(param.dtype) not in C_TYPES:
            raise CompileError(
                f"{wanted.called} reads or writes {param.dtype} in memory, which C has no type for; export that part "
                "of the model in float32"
            )
        pointer = Var(param.name, _pointer_to(param))
        pointers.append(pointer)
        declared.append(DeclBuffer(param, data=pointer))

    begin, end = Var("begin", "int32"), Var("end", "int32")
    parts = [part for part in _statements(function.body) if not _is_nothing(part)]
    work = [part for part in parts if not isinstance(part, DeclBuffer)]
    tiles = 1
    if len(work) == 1 and isinstance(work[0], For) and work[0].kind == ForKind.PARALLEL:
        loop = work[0]
        first, extent = _constant(loop.min), _constant(loop.extent)
        if first == 0 and extent is not None and extent > 0:
            tiles = extent
            body = _map(loop.body, _once(partial(_or_first, loop.loop_var, begin)))
            shared = _between(loop, begin, end, body)
            parts = [shared if part is loop else part for part in parts]

    if function.attrs and TILES in function.attrs:
        tiles = int(function.attrs[TILES])
        parts = [_map(part, partial(_range, tiles, begin, end)) for part in parts]

    scratch = _Scratch()
    whole: Stmt = SeqStmt([*declared, *parts, Return(IntImm("int32", 0))])
    body = _map(_map(whole, _serial), scratch)
    for key, value in (("device_id", 0), ("device_type", 1)):
        body = AttrStmt(StringImm("default"), key, IntImm("int32", value), body)
    dtypes = tuple(str(param.dtype) for param in function.params)
    checks = bool(function.attrs) and CHECKS in function.attrs
    signature = CFunction(wanted.symbol, dtypes, tiles, tuple(scratch.pieces), checks)
    attributes: dict[str, Any] = {"global_symbol": wanted.symbol, "target": target}
    if wanted.distinct:
        attributes["tirx.noalias"] = True
    attrs = tvm.ir.make_node("ir.DictAttrs", **attributes)
    return PrimFunc(
        [*pointers, *scratch.pointers, begin, end], body, ret_type=PrimType("int32"), attrs=attrs
    ), signature


@dataclass(frozen=True, eq=False)
class Wanted:
    """A kernel to compile: its TIR, its C name, whether no two of its arguments overlap, and its first call."""

    symbol: str
    function: PrimFunc
    distinct: bool = True
    node: str = ""
    kernel: str = ""

    @property
    def called(self) -> str:
        """Its name in errors."""
        return f"kernel '{self.kernel or self.symbol}'" + (f" of node '{self.node}'" if self.node else "")


def lower(wanted: Sequence[Wanted], target: Any) -> tuple[Any, tuple[CFunction, ...]]:
    """Plain-ABI functions as an IRModule ready for `target.build`, and their signatures, in order."""
    try:
        return _lower(wanted, target)
    except Exception:
        for one in wanted if len(wanted) > 1 else ():  # so that the current step is the failing one
            working_on("lowering TIR", one.node, one.kernel or one.symbol)
            _lower([one], target)
        raise


def _lower(wanted: Sequence[Wanted], target: Any) -> tuple[Any, tuple[CFunction, ...]]:
    functions = {w.symbol: w.function.with_attr("global_symbol", w.symbol) for w in wanted}
    module = tvm.IRModule(functions)
    module = tirx.transform.BindTarget(target.with_host(target))(module)
    module = _passes(vectorize=target.kind.name != "c")(module)
    made: dict[str, PrimFunc] = {}
    signatures = []
    for w in wanted:
        made[w.symbol], signature = _plain(module[w.symbol], w, target)
        signatures.append(signature)
    module = tvm.IRModule(made)
    module = tvm.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()])(module)
    return module, tuple(signatures)


def compile_objects(wanted: Sequence[Wanted], target: Any) -> Kernels:
    """One object file for an LLVM target; raises CompileError for a kernel that needs TVM at run time."""
    module, signatures = lower(wanted, target)
    code = _object(module, target, wanted)
    if RUNTIME_SYMBOL.search(code):  # undefined symbols are in the object by name
        for one in wanted:
            if RUNTIME_SYMBOL.search(_object(lower([one], target)[0], target, [one])):
                raise CompileError(f"{one.called} calls TVM's runtime, which a bundle does not have")
        raise CompileError("a kernel calls TVM's runtime, which a bundle does not have")
    return Kernels(code, signatures)


def _object(module: Any, target: Any, wanted: Sequence[Wanted]) -> bytes:
    """The object file of kernels; an exception names the first kernel on which LLVM fails."""
    try:
        built = tvm.get_global_func("target.build.llvm")(module, target)
        return object_bytes(built, wanted[0].called if len(wanted) == 1 else f"{len(wanted)} kernels")
    except Exception:
        for one in wanted if len(wanted) > 1 else ():
            working_on("generating machine code", one.node, one.kernel or one.symbol)
            _object(lower([one], target)[0], target, [one])
        raise


def compile_source(wanted: Sequence[Wanted], target: Any) -> Kernels:
    """C text for a `c` target that includes <math.h>, <stdbool.h>, <stdint.h>, <string.h> and nothing of TVM."""
    module, signatures = lower(wanted, target)
    module = printable(module)
    text = tvm.get_global_func("target.build.c")(module, target).inspect_source()
    return Kernels(plain_c(text, module).encode(), signatures)
