"""What nobody foresaw inside of `compile` is a typed error that names the node and the kernel, and ends no process."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from this_machine import needs, needs_x86_64
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

import subbyte
from subbyte.errors import CompileError, ModelError, SubbyteError, UsageError, WriteError
from subbyte.onnx_files.loader import naming
from subbyte.tvm_kernels.abi import Wanted, compile_objects, lower
from subbyte.tvm_kernels.error_context import named_errors, working_on
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.object_file import object_bytes


def fail(error: BaseException, *works: tuple[Any, ...]) -> None:
    with named_errors():
        for work in works:
            working_on(*work)
        raise error


def test_an_exception_names_what_was_last_at_work() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="/stem/Conv")
    works = [("reading the file", "another"), ("building a kernel", node, "dot")]
    message = r"building a kernel, node '/stem/Conv' \(Conv\), kernel 'dot': ZeroDivisionError: by zero"
    with pytest.raises(CompileError, match=message):
        fail(ZeroDivisionError("by zero"), *works)


def test_without_memory_neither_the_file_nor_subbyte_is_to_blame() -> None:
    with pytest.raises(
        CompileError, match=r"at lowering: it takes more memory than there is \(1 GiB\); give"
    ) as raised:
        fail(MemoryError("1 GiB"), ("lowering",))
    assert "report" not in str(raised.value)
    message = r"'big\.onnx' takes more memory than there is \(1 GiB\); give"
    with pytest.raises(ModelError, match=message) as refused, naming(Path("big.onnx")):
        raise MemoryError("1 GiB")
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize("error", [UsageError("ours"), KeyboardInterrupt(), SystemExit(3)])
def test_our_errors_and_interrupts_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        fail(error)
    assert raised.value is error


def test_work_of_one_compilation_is_not_that_of_the_next() -> None:
    for _ in range(2):
        with pytest.raises(CompileError, match="failed at compiling: ValueError: first"):
            fail(ValueError("first"))
        with pytest.raises(CompileError, match="node 'a'"):
            fail(ValueError(), ("lowering", "a"))


def test_a_call_that_the_signature_does_not_take_is_the_callers_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'out'"):
        subbyte.compile("model.onnx", out="model.subbyte")  # type: ignore[call-arg]


# ---- LLVM ----


def horizontal_sums() -> Any:
    """Sums of neighbours by an instruction of SSSE3."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("sums")
        x = T.arg("x", T.buffer((4,), "int32"))
        y = T.arg("y", T.buffer((4,), "int32"))
        whole = x[T.ramp(0, 1, 4)]
        made = T.call_llvm_pure_intrin("int32x4", "llvm.x86.ssse3.phadd.d.128", whole, whole)
        T.buffer_store(y, made, [T.ramp(0, 1, 4)])
    return builder.get()


def plain(name: str) -> Any:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        x = T.arg("x", T.buffer((8,), "int32"))
        y = T.arg("y", T.buffer((8,), "int32"))
        with T.serial(0, 8) as i:
            T.buffer_store(y, x[i] + T.int32(1), [i])
    return builder.get()


@needs_x86_64
def test_an_intrinsic_that_the_target_lacks_is_an_error_that_names_the_kernel() -> None:
    lesser = replace(get_target("x86-64-v3"), features=frozenset()).tvm_target()
    wanted = [
        Wanted("good", plain("good"), node="/first", kernel="plain"),
        Wanted("bad", horizontal_sums(), node="/second", kernel="sums-ssse3"),
    ]
    killed = r"LLVM (was killed by SIG.*|failed) on kernel 'sums-ssse3' of node '/second': .*[Cc]annot select"
    with pytest.raises(CompileError, match=killed):
        compile_objects(wanted, lesser)
    assert compile_objects(wanted[:1], lesser).code.startswith(b"\x7fELF")  # this process lives, and goes on


class EndsTheProcess:
    """What LLVM does where it gives up: exit(), for which what this process has registered for its end is called."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def write_to_file(self, path: str, form: str) -> None:
        library = ctypes.CDLL(None)
        self.last = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)(lambda status, _: self.marker.touch())
        library.on_exit(self.last, None)
        library.exit(0)


@needs(hasattr(ctypes.CDLL(None), "on_exit"), "glibc, whose on_exit this is")
def test_a_child_that_gives_up_ends_without_destructors_that_may_wait_for_threads_of_the_parent(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="LLVM failed on kernel 'good'"):
        object_bytes(EndsTheProcess(tmp_path / "destructors ran"), "kernel 'good'")
    assert not list(tmp_path.iterdir())


@contextmanager
def no_room_for_files() -> Iterator[None]:
    """As on a full disk: no file may grow beyond 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_object_that_cannot_be_written_is_an_error() -> None:
    target = get_target("host").tvm_target()
    module, _ = lower([Wanted("good", plain("good"))], target)
    built = tvm.get_global_func("target.build.llvm")(module, target)
    with (
        no_room_for_files(),
        pytest.raises(
            WriteError, match=r"LLVM could not write the object file of kernel 'good' .*larger than a file may"
        ),
    ):
        object_bytes(built, "kernel 'good'")


def test_the_object_is_the_one_that_llvm_writes_in_this_process(tmp_path: Path) -> None:
    target = get_target("host").tvm_target()
    module, _ = lower([Wanted("good", plain("good"))], target)
    built = tvm.get_global_func("target.build.llvm")(module, target)
    built.write_to_file(str(tmp_path / "kernels.o"), "o")
    assert object_bytes(built, "kernel") == (tmp_path / "kernels.o").read_bytes()


# ---- files ----


def relu(shape: list[int], x: str = "x", name: str = "relu") -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", [x], ["y"], name=name)],
        "g",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def not_text(model: onnx.ModelProto, name: bytes) -> onnx.ModelProto:
    """The model with bytes that are no UTF-8 for a name."""
    return onnx.ModelProto.FromString(model.SerializeToString().replace(name, b"\xff" * len(name)))


def with_weights(op: str, shape: list[int], weights: list[int], **attributes: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["any"])],
        [numpy_helper.from_array(np.zeros(weights, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def blocks_of(size: int) -> onnx.ModelProto:
    made = with_weights("MatMulNBits", [2, 32], [4], domain="com.microsoft", K=32, N=4, bits=4, block_size=size)
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made.graph.node[0].input[:] = ["x", "b", "w"]
    made.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 1, 16), np.uint8), "b"))
    return made


def through_axes(count: int) -> onnx.ModelProto:
    made = with_weights("Reshape", [4], [1])
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([1] * (count - 1) + [4]), "w"))
    made.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    made.graph.output[0].name = "z"
    return made


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_weights("MatMul", [2, 3], [3, 0]), r"'y' \(node 'y'\) has shape \[2, 0\]: it holds no element"),
        (with_weights("Conv", [1, 2, 3, 3], [0, 2, 1, 1]), r"has shape \[1, 0, 3, 3\]: it holds no element"),
        (relu([1] * 70), "input 'x' has 70 axes; at most 8"),
        (through_axes(70), r"'y' \(node 'y'\) has 70 axes; at most 8"),
        (through_axes(9), "has 9 axes; at most 8"),
        (relu([2, 4], x="x\0z"), r"NUL character: 'x\\x00z'"),
        (relu([2, 4], name="n\0"), "a name of node 0 holds a NUL"),
        (not_text(relu([2, 4], x="input"), b"input"), r"not UTF-8: b'\\xff"),
        (not_text(relu([2, 4], name="rename"), b"rename"), "a name of node 0 is not UTF-8"),
        (blocks_of(0), "block_size 0; all are positive"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_cannot_be_compiled_is_refused_by_name(model: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        subbyte.compile(model, tmp_path / "m.subbyte")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_can_hold_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(SubbyteError):
        subbyte.compile(relu([2, 4]), tmp_path / "m.subbyte", name="a\ud800b")
