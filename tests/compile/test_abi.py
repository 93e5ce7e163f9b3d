"""Kernels as plain C functions: tiles, scratch, exact constants, nothing of TVM left."""

from __future__ import annotations

import ctypes
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_plan import matmul, scale
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from subbyte.errors import CompileError
from subbyte.formats import LowBitTensor, PerChannel, get
from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.abi import ONCE, TILES, Wanted, compile_objects, compile_source
from subbyte.tvm_kernels.kernels.registry import Constant, Input, Workspace, choose
from subbyte.tvm_kernels.kernels.tir.execute import aligned
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.operators import Codes, Epilogue, MatMul, Product

C_FLAGS = ["-std=c99", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-Wl,-z,noexecstack"]


def load(code: bytes, suffix: str, folder: Path) -> ctypes.CDLL:
    path = folder / f"kernels{suffix}"
    path.write_bytes(code)
    library = folder / f"kernels{suffix}.so"
    subprocess.run(["gcc", *C_FLAGS, str(path), "-o", str(library), "-lm"], check=True, timeout=600)
    return ctypes.CDLL(str(library))


def call(function: Any, arrays: list[np.ndarray[Any, Any]], begin: int, end: int) -> int:
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
    return int(function(*pointers, ctypes.c_int32(begin), ctypes.c_int32(end)))


def aligned_copy(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    copy = aligned(values.shape, values.dtype)
    copy[...] = values
    return copy


def unary(expression: Any, n: int = 64) -> Any:
    """float32 [n] to float32 [n]."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("unary")
        x = T.arg("x", T.buffer((n,), "float32"))
        y = T.arg("y", T.buffer((n,), "float32"))
        with T.parallel(0, n) as i:
            T.buffer_store(y, expression(x[i]), [i])
    return builder.get()


@pytest.mark.parametrize("generator", ["llvm", "c"])
def test_a_kernel_works_on_just_the_tiles_it_is_given(generator: str, tmp_path: Path) -> None:
    wanted = [Wanted("product", matmul(7, 24, 10))]
    if generator == "llvm":
        kernels = compile_objects(wanted, get_target("host").tvm_target())
        library = load(kernels.code, ".o", tmp_path)
    else:
        kernels = compile_source(wanted, get_target("cortex-m4").tvm_target())
        library = load(kernels.code, ".c", tmp_path)
    signature = kernels.signatures[0]
    assert signature.tiles == 7
    assert (
        signature.declaration() == "int32_t product(uint8_t *p0, int8_t *p1, int32_t *p2, int32_t begin, int32_t end);"
    )
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (7, 24)).astype(np.uint8)
    weights = rng.integers(-128, 128, (10, 24)).astype(np.int8)
    out = np.full((7, 10), 99, np.int32)
    assert call(library.product, [codes, weights, out], 2, 5) == 0
    expected = (codes.astype(np.int32) - 128) @ weights.astype(np.int32).T
    np.testing.assert_array_equal(out[2:5], expected[2:5])
    assert (out[:2] == 99).all()
    assert (out[5:] == 99).all()


def shares_a_copy() -> Any:
    """int32 [2, 3]: tile t adds its number to what tiles of its row share: workspace[0], the row's number x 10."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("shares")
        x = T.arg("x", T.buffer((2,), "int32"))
        y = T.arg("y", T.buffer((6,), "int32"))
        shared = T.arg("shared", T.buffer((1,), "int32"))
        with T.parallel(0, 6) as tile:
            with T.attr(0, ONCE, tile % 3 == 0):
                T.buffer_store(shared, shared[0] * 0 + x[tile // 3], [0])
            T.buffer_store(y, shared[0] + tile, [tile])
    return builder.get()


def test_what_runs_once_runs_in_the_first_tile_of_every_call(tmp_path: Path) -> None:
    kernels = compile_objects([Wanted("shares", shares_a_copy())], get_target("host").tvm_target())
    function = load(kernels.code, ".o", tmp_path).shares
    x, expected = np.array([10, 20], np.int32), np.array([10, 11, 12, 23, 24, 25], np.int32)
    for cuts in ([0, 6], [0, 2, 6], [0, 4, 6], [0, 1, 2, 3, 4, 5, 6]):
        y = np.zeros(6, np.int32)
        for begin, end in pairwise(cuts):
            shared = np.full(1, -999, np.int32)  # another thread's, or another kernel's
            assert call(function, [x, y, shared], begin, end) == 0
        np.testing.assert_array_equal(y, expected)


def tiles_inside(extent: int = 6) -> Any:
    """y[j, i] = 10 * j + i, with the loop over tiles i inside of the one over j; counts the times that j begins."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("inside")
        T.func_attr({TILES: 6})
        y = T.arg("y", T.buffer((3, 6), "int32"))
        begun = T.arg("begun", T.buffer((3,), "int32"))
        with T.serial(0, 3) as j:
            T.buffer_store(begun, begun[j] + 1, [j])
            with T.parallel(0, extent) as i:
                T.buffer_store(y, 10 * j + i, [j, i])
    return builder.get()


def test_loops_inside_of_others_run_over_the_tiles_of_a_call(tmp_path: Path) -> None:
    kernels = compile_objects([Wanted("inside", tiles_inside())], get_target("host").tvm_target())
    assert kernels.signatures[0].tiles == 6
    function = load(kernels.code, ".o", tmp_path).inside
    for cuts in ([0, 6], [0, 2, 6], [0, 1, 2, 3, 4, 5, 6]):
        y, begun = np.full((3, 6), -1, np.int32), np.zeros(3, np.int32)
        for begin, end in pairwise(cuts):
            assert call(function, [y, begun], begin, end) == 0
            assert (y[:, end:] == -1).all()
        np.testing.assert_array_equal(y, 10 * np.arange(3)[:, None] + np.arange(6))
        assert (begun == len(cuts) - 1).all()


@pytest.mark.parametrize("generator", ["llvm", "c"])
def test_a_loop_over_tiles_that_tvm_leaves_64_bit(generator: str, tmp_path: Path) -> None:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("far")
        x = T.arg("x", T.buffer((6,), "int64"))
        y = T.arg("y", T.buffer((6,), "int64"))
        shared = T.arg("shared", T.buffer((1,), "int64"))
        with T.parallel(T.int64(0), T.int64(6)) as i:
            with T.attr(0, ONCE, T.bool(False)):
                T.buffer_store(shared, i, [0])
            T.buffer_store(y, x[i] + i * T.int64(1 << 40) + shared[0], [i])
    target = get_target("host" if generator == "llvm" else "cortex-m4").tvm_target()
    kernels = (compile_objects if generator == "llvm" else compile_source)([Wanted("far", builder.get())], target)
    function = load(kernels.code, ".o" if generator == "llvm" else ".c", tmp_path).far
    y = np.full(6, -1, np.int64)
    assert call(function, [np.arange(6), y, np.zeros(1, np.int64)], 2, 5) == 0
    expected = np.where((np.arange(6) >= 2) & (np.arange(6) < 5), np.arange(6) * ((1 << 40) + 1) + 2, -1)
    np.testing.assert_array_equal(y, expected)


def test_a_loop_that_is_not_over_the_tiles_is_refused() -> None:
    with pytest.raises(CompileError, match="all must run over the tiles"):
        compile_objects([Wanted("inside", tiles_inside(5))], get_target("host").tvm_target())


@pytest.mark.parametrize(("fmt", "depth"), [("ternary", 384), ("ternary", 1536), ("int8", 384)])
def test_a_product_in_any_cut_of_its_tiles(fmt: str, depth: int, tmp_path: Path) -> None:
    """Deep ones keep sums between parts of the depth; the workspace is another thread's, full of rubbish."""
    rng = np.random.default_rng(0)
    levels = rng.choice(get(fmt).levels.values, (1536, depth))
    weight = LowBitTensor.from_levels(get(fmt), levels, np.ones(1536, np.float32), PerChannel(0))
    op = Product("layer", Codes(-128, 127, 128), weight, MatMul(197, depth, 1536), Epilogue())
    built = choose(op, host_features()).kernel.build(op)
    kernels = compile_objects([Wanted("product", built.function)], get_target("host").tvm_target())
    function = load(kernels.code, ".o", tmp_path).product
    codes = rng.integers(0, 256, (197, depth)).astype(np.uint8)
    wanted = operators.run(op, [codes])[0]
    tiles = kernels.signatures[0].tiles
    if "avx2" in host_features():
        assert tiles > 2
    if "amxint8" in host_features():
        assert int(built.function.attrs[TILES]) == tiles
    for cuts in ([0, tiles], [0, tiles // 2, tiles], list(range(tiles + 1))):
        out = np.zeros((197, 1536), np.float32)
        for begin, end in pairwise(cuts):
            arrays = []
            for parameter in built.parameters:
                array = out
                if isinstance(parameter, Input):
                    array = codes
                elif isinstance(parameter, Constant):
                    array = parameter.values
                elif isinstance(parameter, Workspace):
                    array = rng.integers(0, 256, parameter.nbytes).astype(np.uint8)
                arrays.append(array if array is out else aligned_copy(array))
            assert call(function, arrays, begin, end) == 0
        np.testing.assert_array_equal(out, wanted)


def test_two_loops_are_one_tile_and_large_scratch_becomes_a_pointer() -> None:
    kernels = compile_objects([Wanted("scale", scale(7, 10))], get_target("host").tvm_target())
    signature = kernels.signatures[0]
    assert signature.tiles == 1
    assert signature.scratch_bytes >= 7 * 10 * 4
    assert "float *p3" in signature.declaration()
    assert "args[3] + 0" in signature.trampoline()
    assert b"TVMBackend" not in kernels.code


@pytest.mark.parametrize("constant", [0.1, -0.1, 1 / 3, 16777215.0, 1e-38, float(np.float32(0.3) * np.float32(0.7))])
def test_constants_in_c_keep_all_their_digits(constant: float, tmp_path: Path) -> None:
    function = unary(lambda x: x * T.float32(constant))
    kernels = compile_source([Wanted("unary", function)], get_target("cortex-m4").tvm_target())
    library = load(kernels.code, ".c", tmp_path)
    x = np.linspace(-3, 3, 64, dtype=np.float32)
    y = np.empty(64, np.float32)
    call(library.unary, [x, y], 0, 64)
    np.testing.assert_array_equal(y, x * np.float32(constant))


def test_c_rounds_to_nearest_even_like_numpy(tmp_path: Path) -> None:
    kernels = compile_source([Wanted("unary", unary(T.nearbyint, 4096))], get_target("cortex-m4").tvm_target())
    assert b" nearbyintf(" not in kernels.code
    library = load(kernels.code, ".c", tmp_path)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 4096, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32).copy()
    x[:2048] = np.arange(-1024, 1024, dtype=np.float32) / 2
    x[2048:2056] = [8388607.5, 8388608.5, -8388607.5, 4194303.5, -0.0, -0.25, np.inf, -np.inf]
    y = np.empty(4096, np.float32)
    call(library.unary, [x, y], 0, 4096)
    with np.errstate(invalid="ignore"):
        expected = np.rint(x)
    same = (y.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(x) & np.isnan(y))
    assert same.all()


def test_c_takes_absolute_values(tmp_path: Path) -> None:
    kernels = compile_source([Wanted("unary", unary(T.fabs))], get_target("cortex-m4").tvm_target())
    library = load(kernels.code, ".c", tmp_path)
    x = np.linspace(-3, 3, 64, dtype=np.float32)
    x[:3] = [-np.inf, -0.0, -1e-40]
    y = np.empty(64, np.float32)
    call(library.unary, [x, y], 0, 64)
    np.testing.assert_array_equal(y.view(np.uint32), np.abs(x).view(np.uint32))


def test_c_counts_bits(tmp_path: Path) -> None:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("count")
        x = T.arg("x", T.buffer((64,), "uint32"))
        y = T.arg("y", T.buffer((64,), "uint32"))
        with T.parallel(0, 64) as i:
            T.buffer_store(y, T.popcount(x[i]), [i])
    kernels = compile_source([Wanted("count", builder.get())], get_target("cortex-m4").tvm_target())
    library = load(kernels.code, ".c", tmp_path)
    words = np.random.default_rng(1).integers(0, 2**32, 64, dtype=np.uint64).astype(np.uint32)
    words[:2] = [0, 0xFFFFFFFF]
    counted = np.empty(64, np.uint32)
    call(library.count, [words, counted], 0, 64)
    np.testing.assert_array_equal(counted, [int(word).bit_count() for word in words])


def stale() -> Any:
    """int32 y[0] counts up between equal expressions: in one block, and in a loop inside of it."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("stale")
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.buffer((8,), "int32"))
        y = T.arg("y", T.buffer((8,), "int32"))
        T.buffer_store(y, T.max(x[0], y[0]), [1])
        T.buffer_store(y, T.int32(100), [0])
        T.buffer_store(y, T.max(x[0], y[0]), [2])
        T.buffer_store(y, T.min(T.max(y[0], 7), 50), [3])
        with T.serial(0, 3) as i:
            T.buffer_store(y, y[0] + 1, [0])
            T.buffer_store(y, T.min(x[i], y[0]) + T.max(y[0], T.min(x[0], y[0])), [4 + i])
    return builder.get()


def compiled(function: Any, symbol: str, generator: str, folder: Path) -> Any:
    if generator == "llvm":
        code = compile_objects([Wanted(symbol, function)], get_target("host").tvm_target()).code
        return getattr(load(code, ".o", folder), symbol)
    code = compile_source([Wanted(symbol, function)], get_target("cortex-m4").tvm_target()).code
    return getattr(load(code, ".c", folder), symbol)


@pytest.mark.parametrize("generator", ["llvm", "c"])
def test_a_load_under_max_or_min_is_read_again_after_a_store(generator: str, tmp_path: Path) -> None:
    x = np.array([90, 10, 200, 0, 0, 0, 0, 0], np.int32)
    y = np.array([1, 0, 0, 0, 0, 0, 0, 0], np.int32)
    assert call(compiled(stale(), "stale", generator, tmp_path), [x, y], 0, 1) == 0
    np.testing.assert_array_equal(y, [103, 90, 100, 50, 90 + 101, 10 + 102, 103 + 103, 0])


def test_tvms_own_c_takes_the_load_before_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `printable`. Once this fails TVM reads again, and c_text.py need not replace min and max."""
    monkeypatch.setattr("subbyte.tvm_kernels.abi.printable", lambda module: module)
    x, y = np.zeros((2, 8), np.int32)
    call(compiled(stale(), "stale", "c", tmp_path), [x, y], 0, 1)
    assert y[2] == 0  # max(0, 100)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "float32"])
def test_min_and_max_of_every_type_in_c(dtype: str, tmp_path: Path) -> None:
    with IRBuilder() as builder, T.prim_func():
        T.func_name("both")
        a = T.arg("a", T.buffer((64,), dtype))
        b = T.arg("b", T.buffer((64,), dtype))
        y = T.arg("y", T.buffer((128,), dtype))
        with T.parallel(0, 64) as i:
            T.buffer_store(y, T.min(a[i], b[i]), [i])
            T.buffer_store(y, T.max(a[i], b[i]), [64 + i])
    rng = np.random.default_rng(2)
    kind = np.dtype(dtype)
    left, right = rng.integers(0, 256, (2, 64 * kind.itemsize), np.uint8).view(kind)
    if kind.kind == "f":
        left, right = rng.standard_normal((2, 64), np.float32)
    out = np.empty(128, kind)
    assert call(compiled(builder.get(), "both", "c", tmp_path), [left, right, out], 0, 64) == 0
    np.testing.assert_array_equal(out, np.concatenate([np.minimum(left, right), np.maximum(left, right)]))


def test_the_extent_of_a_loop_in_c_is_read_before_the_loop(tmp_path: Path) -> None:
    """The loop counts its own extent up."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("counts")
        n = T.arg("n", T.buffer((1,), "int32"))
        y = T.arg("y", T.buffer((8,), "int32"))
        with T.serial(0, T.min(n[0], 6)) as i:
            T.buffer_store(n, n[0] + 1, [0])
            T.buffer_store(y, i + 1, [i])
    count, out = np.array([3], np.int32), np.zeros(8, np.int32)
    assert call(compiled(builder.get(), "counts", "c", tmp_path), [count, out], 0, 1) == 0
    assert count[0] == 6
    np.testing.assert_array_equal(out, [1, 2, 3, 0, 0, 0, 0, 0])


def test_c_has_no_function_for_a_type_it_does_not_know() -> None:
    function = unary(lambda x: T.Cast("float32", T.max(T.Cast("float16", x), T.float16(0))))
    with pytest.raises(CompileError, match="C sources have no max of float16"):
        compile_source([Wanted("unary", function)], get_target("cortex-m4").tvm_target())


def test_c_names_nothing_of_tvm() -> None:
    kernels = compile_source([Wanted("product", matmul(3, 4, 5))], get_target("cortex-m4").tvm_target())
    assert b"tvm" not in kernels.code.lower()


def test_a_parameter_that_is_no_buffer_is_refused() -> None:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("odd")
        n = T.arg("n", T.int32())
        y = T.arg("y", T.buffer((4,), "int32"))
        T.buffer_store(y, n, [0])
    with pytest.raises(CompileError, match="parameter n is not a buffer"):
        compile_objects([Wanted("odd", builder.get())], get_target("host").tvm_target())


def test_a_kernel_that_calls_tvm_at_run_time_is_refused_by_name() -> None:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("calls")
        y = T.arg("y", T.buffer((4,), "int32"))
        T.buffer_store(y, T.int32(1), [0])
        T.evaluate(T.call_packed("somewhere.else", y[0]))
    wanted = [Wanted("fine", matmul(3, 4, 5)), Wanted("calls", builder.get())]
    with pytest.raises(CompileError, match="kernel 'calls' calls TVM's runtime"):
        compile_objects(wanted, get_target("host").tvm_target())
    with pytest.raises(CompileError, match="would need TVM"):
        compile_source(wanted, get_target("cortex-m4").tvm_target())
