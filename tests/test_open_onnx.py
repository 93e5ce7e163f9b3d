"""The loader of ONNX files refuses what it cannot trust, each time with what to do, for every command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import subbyte
from subbyte.cli import main
from subbyte.errors import ModelError, UsageError
from subbyte.export import inspect, load_onnx
from subbyte.files import limits
from subbyte.onnx_files.loader import open_onnx
from subbyte.tvm_kernels.onnx_model import load_model

FLOAT = onnx.TensorProto.FLOAT
X = np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 4)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    shape: Sequence[int] = (1, 4),
) -> onnx.ModelProto:
    x, y = helper.make_tensor_value_info("x", FLOAT, shape), helper.make_tensor_value_info("y", FLOAT, ["?", "?"])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("acme", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], list(constants))
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def written(folder: Path, model: onnx.ModelProto, name: str = "m.onnx") -> Path:
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def external(name: str, location: str, dims: Sequence[int] = (4, 4), **entries: object) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def product(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model_of([helper.make_node("MatMul", ["x", tensor.name], ["y"])], [tensor])


# ---- one loader ----


def test_a_file_is_told_as_it_was_read(tmp_path: Path) -> None:
    path = written(tmp_path, model_of([helper.make_node("Relu", ["x"], ["y"])]))
    file = open_onnx(path)
    assert (file.path, file.nbytes, file.external_bytes) == (path, path.stat().st_size, 0)
    path.write_bytes(b"another content")
    assert load_onnx(file) == load_model(file) == file.model
    assert open_onnx(file) is file
    assert open_onnx(file.model).sha256 == file.sha256


@pytest.mark.parametrize("load", [open_onnx, load_onnx, load_model, inspect, subbyte.compile])
def test_every_reader_refuses_in_the_same_words(load, tmp_path: Path) -> None:
    path = written(tmp_path, model_of([helper.make_node("Sofmax", ["x"], ["y"], "bad")]))
    with pytest.raises(ModelError, match=r"'.*m.onnx': .* has no operator Sofmax \(node 'bad'\).*'Softmax'"):
        load(path)
    with pytest.raises(UsageError, match="there is no ONNX file"):
        load(tmp_path / "no.onnx")


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile opens the file and its data once each: what was checked is what is compiled and compared with."""
    (tmp_path / "w.bin").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    path = written(tmp_path, product(external("w", "w.bin")))
    opened = []
    was = os.open
    monkeypatch.setattr(os, "open", lambda name, *rest, **more: opened.append(str(name)) or was(name, *rest, **more))
    subbyte.compile(path, tmp_path / "m.subbyte", replay=False)
    assert [Path(name).name for name in opened if name.startswith(str(tmp_path))].count("m.onnx") == 1
    assert [Path(name).name for name in opened if name.startswith(str(tmp_path))].count("w.bin") == 1


def test_nodes_are_sorted_for_all(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"], "last"), helper.make_node("Neg", ["x"], ["a"], "first")]
    assert [node.op_type for node in load_onnx(written(tmp_path, model_of(nodes))).graph.node] == ["Neg", "Relu"]


def test_an_input_of_too_many_elements_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, model_of([helper.make_node("Relu", ["x"], ["y"])], shape=(1 << 16, 1 << 15)))
    for command in ("inspect", "compile"):
        result = CliRunner().invoke(main, [command, str(path)])
        assert result.exit_code == 1
        assert "input 'x' of shape [65536, 32768] has 2147483648 elements, at most 2147483647" in result.output


def test_a_file_over_the_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(limits.ONNX_BYTES + 1)  # a hole: it takes no space
    with pytest.raises(ModelError, match=str(limits.ONNX_BYTES)):
        open_onnx(tmp_path / "m.onnx")


# ---- functions of functions ----


def calls(count: int, depth: int) -> onnx.ModelProto:
    """A function that calls one `count` times that calls one `count` times, and so on; the last one is Relu."""
    functions = []
    for level in range(depth):
        names = ["a", *(f"t{i}" for i in range(count))]
        op, domain = (f"f{level + 1}", "acme") if level + 1 < depth else ("Relu", "")
        nodes = [helper.make_node(op, [names[i]], [names[i + 1]], domain=domain) for i in range(count)]
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("acme", 1)]
        functions.append(helper.make_function("acme", f"f{level}", ["a"], [names[-1]], nodes, opsets))
    return model_of([helper.make_node("f0", ["x"], ["y"], domain="acme")], functions=functions)


@pytest.mark.parametrize("turned", [False, True])
def test_functions_of_calls_of_functions_are_counted_first(turned: bool, tmp_path: Path) -> None:
    """2 kB whose calls stand for 10 to the power of 12 nodes."""
    model = calls(10, 12)
    functions = list(model.functions)[::-1] if turned else list(model.functions)
    del model.functions[:]
    model.functions.extend(functions)
    path = written(tmp_path, model)
    for load in (open_onnx, load_onnx, load_model, inspect, subbyte.compile):
        with pytest.raises(ModelError, match="in the place of their calls the file has 1000000000000 nodes"):
            load(path)  # type: ignore[operator]
    chain = calls(1, limits.CALL_DEPTH + 1)
    functions = list(chain.functions)[::-1] if turned else list(chain.functions)
    del chain.functions[:]
    chain.functions.extend(functions)
    with pytest.raises(ModelError, match=f"nested {limits.CALL_DEPTH + 1} deep, the limit is {limits.CALL_DEPTH}"):
        open_onnx(written(tmp_path, chain))


@pytest.mark.parametrize(("count", "depth"), [(10, 3), (1, limits.CALL_DEPTH), (3, 5)])
def test_calls_within_the_limits_compute_what_the_file_says(count: int, depth: int, tmp_path: Path) -> None:
    model = calls(count, depth)
    file = open_onnx(written(tmp_path, model))
    inlined = load_model(file)
    assert [node.op_type for node in inlined.graph.node] == ["Relu"] * count**depth
    (got,) = ReferenceEvaluator(inlined).run(None, {"x": X})
    assert np.array_equal(got, np.maximum(X, 0))


def test_functions_that_call_themselves_are_refused(tmp_path: Path) -> None:
    model = calls(2, 3)
    model.functions[2].node[0].domain, model.functions[2].node[0].op_type = "acme", "f1"
    with pytest.raises(ModelError, match=r"function acme.f\d calls itself"):
        open_onnx(written(tmp_path, model))


def test_bytes_of_functions_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant of 40 kB that 1,000 calls would copy."""
    model = calls(10, 3)
    value = numpy_helper.from_array(np.zeros(10_000, np.float32))
    model.functions[2].node.append(helper.make_node("Constant", [], ["c"], value=value))
    monkeypatch.setattr(limits, "ONNX_BYTES", 3_000_000)
    with pytest.raises(ModelError, match=r"the file has 40\d{5} bytes, at most 3000000"):
        open_onnx(written(tmp_path, model))


# ---- external data ----


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/../../secret", "C:\\secret", "", "a\0b"])
def test_external_data_outside_of_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    path = written(folder, product(external("w", location)))
    for load in (open_onnx, load_model, inspect):
        with pytest.raises(ModelError, match=r"tensor 'w'.*(outside of the model's folder|not a valid path)"):
            load(path)  # type: ignore[operator]


def test_external_data_through_a_link_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (folder / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="outside of the model's folder"):
        open_onnx(written(folder, product(external("w", "w.bin"))))


def test_external_data_in_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(ModelError, match=r"tensor 'w' needs the file 'w.bin', .*it is a pipe"):
        open_onnx(written(tmp_path, product(external("w", "w.bin"))))


@pytest.mark.parametrize(
    ("entries", "size", "words"),
    [
        ({}, None, "which is not beside the model"),
        ({}, 63, "needs the bytes 0 to 64 of 'w.bin', which has 63"),
        ({"offset": 1}, 64, "needs the bytes 1 to 65 of 'w.bin', which has 64"),
        ({"length": 60}, 64, r"shape \[4, 4\] and type FLOAT takes 64 bytes, its external data have 60"),
        ({"offset": -4}, 64, "the offset of its external data is '-4', no number of bytes"),
        ({"length": "9" * 400}, 64, "no number of bytes"),
        ({"offset": "9" * 18}, 64, "needs the bytes 9"),
    ],
)
def test_external_data_of_another_length_are_refused(
    entries: dict[str, object], size: int | None, words: str, tmp_path: Path
) -> None:
    if size is not None:
        (tmp_path / "w.bin").write_bytes(bytes(size))
    with pytest.raises(ModelError, match=words):
        open_onnx(written(tmp_path, product(external("w", "w.bin", **entries))))


def test_external_data_are_read_wherever_they_stand(tmp_path: Path) -> None:
    """Of initializers, and of constants in the graph, in subgraphs and in functions."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 16)).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(values.tobytes())
    tensors = [external(f"w{i}", "w.bin", offset=64 * i, length=64) for i in range(4)]
    inside = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensors[2]), helper.make_node("Add", ["b", "c"], ["d"])],
        "then",
        [],
        [helper.make_tensor_value_info("d", FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["e"])], "else", [], [helper.make_tensor_value_info("e", FLOAT, None)]
    )
    body = [helper.make_node("Constant", [], ["k"], value=tensors[3]), helper.make_node("Mul", ["i", "k"], ["o"])]
    function = helper.make_function("acme", "scaled", ["i"], ["o"], body, [helper.make_opsetid("", 21)])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=tensors[1]),
        helper.make_node("MatMul", ["a", "w0"], ["m"]),
        helper.make_node("Add", ["m", "x"], ["b"]),
        helper.make_node("If", ["yes"], ["f"], then_branch=inside, else_branch=other),
        helper.make_node("scaled", ["f"], ["y"], domain="acme"),
    ]
    yes = numpy_helper.from_array(np.array(True), "yes")
    file = open_onnx(written(tmp_path, model_of(nodes, [tensors[0], yes], [function])))
    (got,) = ReferenceEvaluator(file.model).run(None, {"x": X})
    w = values.reshape(4, 4, 4)
    assert np.allclose(got, (w[1] @ w[0] + X + w[2]) * w[3], rtol=1e-6)
    assert file.external_bytes == 256


def test_a_range_that_many_tensors_name_is_held_once(tmp_path: Path) -> None:
    """300 initializers over one file would take 300 times its size."""
    weights = (np.random.default_rng(0).standard_normal((4, 4)) / 4).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(weights.tobytes())
    names = [f"w{i}" for i in range(300)]
    nodes = [helper.make_node("MatMul", ["x" if i == 0 else f"t{i}", w], [f"t{i + 1}"]) for i, w in enumerate(names)]
    nodes.append(helper.make_node("Identity", ["t3"], ["y"]))
    file = open_onnx(written(tmp_path, model_of(nodes, [external(name, "w.bin") for name in names])))
    assert file.external_bytes == 64
    assert [tensor.name for tensor in file.model.graph.initializer] == ["w0"]
    (got,) = ReferenceEvaluator(file.model).run(None, {"x": X})
    assert np.allclose(got, X @ weights @ weights @ weights, rtol=1e-5)


def test_ranges_that_overlap_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64 + 400))
    names = [f"w{i}" for i in range(100)]
    nodes = [helper.make_node("MatMul", ["x", name], ["y" if name == "w99" else f"t{name}"]) for name in names]
    tensors = [external(name, "w.bin", offset=4 * i) for i, name in enumerate(names)]
    with pytest.raises(ModelError, match=r"take 6400 bytes of .*, which has 464: their ranges overlap"):
        open_onnx(written(tmp_path, model_of(nodes, tensors)))


def test_data_of_3_gb_are_read_where_the_tensor_lies(tmp_path: Path) -> None:
    """Exactly its bytes of a file with holes."""
    start = 3 << 30
    with (tmp_path / "w.bin").open("wb") as file:
        file.seek(start)
        file.write(np.arange(16, dtype=np.float32).tobytes())
    path = written(tmp_path, product(external("w", "w.bin", offset=start, length=64)))
    assert np.array_equal(numpy_helper.to_array(open_onnx(path).model.graph.initializer[0]).reshape(-1), np.arange(16))


def test_a_tensor_that_protobuf_cannot_hold_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ModelError, match=rf"tensor 'w' .* takes {3 << 30} bytes, at most {2**31 - 1}"):
        open_onnx(written(tmp_path, product(external("w", "w.bin", (3 << 20, 256)))))


def test_too_much_external_data_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(20 << 30)
    names = [f"w{i}" for i in range(20)]
    nodes = [helper.make_node("MatMul", ["x", name], ["y" if name == "w19" else f"t{name}"]) for name in names]
    tensors = [external(name, "w.bin", (4, 1 << 26), offset=i << 30) for i, name in enumerate(names)]
    with pytest.raises(ModelError, match=f"its external data have {20 << 30} bytes, the limit is {16 << 30}"):
        open_onnx(written(tmp_path, model_of(nodes, tensors)))


def test_data_of_a_model_in_memory_are_refused() -> None:
    with pytest.raises(ModelError, match="a model in memory has no folder for external data"):
        open_onnx(product(external("w", "w.bin")))


@pytest.mark.parametrize(("dims", "kind", "words"), [((4, -4), 1, "sizes are 0 or more"), ((4, 4), 99, "type 99")])
def test_tensors_that_cannot_be_are_refused(dims: tuple[int, ...], kind: int, words: str, tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_type=kind, dims=dims, raw_data=bytes(64))
    with pytest.raises(ModelError, match=f"tensor 'w' .*{words}"):
        open_onnx(written(tmp_path, product(tensor)))


# ---- heavy tensors stand aside while ONNX's C++ looks ----


def test_heavy_initializers_come_back(tmp_path: Path) -> None:
    heavy = np.random.default_rng(0).standard_normal((4, 20_000)).astype(np.float32)
    model = product(numpy_helper.from_array(heavy, "w"))
    model.opset_import[0].version = 11  # converted
    square = helper.make_function(
        "acme", "square", ["a"], ["b"], [helper.make_node("Mul", ["a", "a"], ["b"])], [helper.make_opsetid("", 11)]
    )
    model.functions.append(square)
    model.graph.node[0].output[0] = "z"
    model.graph.node.append(helper.make_node("square", ["z"], ["y"], domain="acme"))
    made = load_model(written(tmp_path, model))
    assert [value.name for value in made.graph.input] == ["x"]
    (got,) = ReferenceEvaluator(made).run(None, {"x": X})
    assert np.array_equal(got, (X @ heavy) ** 2)
    assert inspect(tmp_path / "m.onnx").macs == 80_000


TYPES = [kind for name, kind in onnx.TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0, 4)])
@pytest.mark.parametrize("kind", TYPES, ids=onnx.TensorProto.DataType.Name)
def test_data_are_as_long_as_the_shape_says(kind: int, shape: tuple[int, ...]) -> None:
    typed = helper.make_tensor("c", kind, shape, [1] * int(np.prod(shape)))
    for tensor in (typed, numpy_helper.from_array(numpy_helper.to_array(typed), "c")):
        model = model_of([helper.make_node("Relu", ["x"], ["y"])], [tensor])
        assert open_onnx(model).model.graph.initializer[0] == tensor
        for dims in ([9, *shape], [0]):
            if 0 not in shape:
                del model.graph.initializer[0].dims[:]
                model.graph.initializer[0].dims.extend(dims)
                with pytest.raises(ModelError, match=r"tensor 'c' of shape .* takes \d+ (bytes|values) and holds \d+"):
                    open_onnx(model)
