"""Damaged and hostile files, given to each command that reads them: exit 1, one line, and no file left behind."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import helper

import subbyte
from subbyte.cli import main
from subbyte.models.checkpoint import Config, build_model, load_checkpoint, save_checkpoint, weights_file

FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Good:
    """Files of one untrained model, from which the bad ones are made."""

    run: Path
    onnx: Path
    bundle: Path
    foreign: Path  # compiled for another processor


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("good")
    files = Good(folder / "run", folder / "model.onnx", folder / "model.subbyte", folder / "foreign.subbyte")
    config = Config(model="mlp", scheme="ternary", shape=(1, 4, 4), outputs=3)
    model = build_model(config).train()
    model(torch.rand(8, *config.input_shape[1:]))  # activation quantizers take their steps from data
    save_checkpoint(files.run, model.eval(), config)
    subbyte.export(files.run, files.onnx, check=False)
    subbyte.compile(files.onnx, files.bundle)
    subbyte.compile(files.onnx, files.foreign, target="cortex-a53")
    return files


# ---- bundles ----


def truncated_bundle(good: Good, folder: Path) -> Path:
    data = good.bundle.read_bytes()
    return _file(folder / "bad.subbyte", data[: len(data) // 2])


def deflated_bundle(good: Good, folder: Path) -> Path:
    return _rezipped(good, folder / "bad.subbyte", zipfile.ZIP_DEFLATED)


def changed_bundle(good: Good, folder: Path) -> Path:
    """One byte of the library differs from its hash."""
    data = bytearray(good.bundle.read_bytes())
    with zipfile.ZipFile(good.bundle) as file:
        info = file.getinfo("library.so")
    names = struct.unpack_from("<HH", data, info.header_offset + 26)
    data[info.header_offset + 30 + sum(names) + info.file_size - 1] ^= 0xFF
    return _file(folder / "bad.subbyte", bytes(data))


def escaping_bundle(good: Good, folder: Path) -> Path:
    return _rezipped(good, folder / "bad.subbyte", zipfile.ZIP_STORED, extra="../evil")


def foreign_bundle(good: Good, folder: Path) -> Path:
    return _file(folder / "bad.subbyte", good.foreign.read_bytes())


def _rezipped(good: Good, path: Path, method: int, extra: str | None = None) -> Path:
    with zipfile.ZipFile(good.bundle) as source, zipfile.ZipFile(path, "w") as file:
        for info in source.infolist():
            file.writestr(info, source.read(info), compress_type=method)
        if extra:
            file.writestr(extra, b"x")
    return path


# ---- ONNX files ----


def archive_of_arrays(good: Good, folder: Path) -> Path:
    """An .npz where one array is wanted."""
    np.savez(folder / "x.npz", x=np.zeros((1, 1, 4, 4), np.float32))
    return folder / "x.npz"


def truncated_onnx(good: Good, folder: Path) -> Path:
    data = good.onnx.read_bytes()
    return _file(folder / "bad.onnx", data[: len(data) // 2])


def unknown_operator(good: Good, folder: Path) -> Path:
    return _onnx(folder, [helper.make_node("Sofmax", ["x"], ["y"], "bad")])


def cycle(good: Good, folder: Path) -> Path:
    return _onnx(folder, [helper.make_node("Add", ["x", "y"], ["a"]), helper.make_node("Relu", ["a"], ["y"])])


def dynamic_shape(good: Good, folder: Path) -> Path:
    return _onnx(folder, [helper.make_node("Relu", ["x"], ["y"])], shape=("batch", 4))


def opset_of_the_future(good: Good, folder: Path) -> Path:
    model = onnx.load(_onnx(folder, [helper.make_node("Relu", ["x"], ["y"])]))
    model.opset_import[0].version = 99
    return _file(folder / "bad.onnx", model.SerializeToString())


def no_outputs(good: Good, folder: Path) -> Path:
    model = onnx.load(_onnx(folder, [helper.make_node("Relu", ["x"], ["y"])]))
    del model.graph.output[:]
    return _file(folder / "bad.onnx", model.SerializeToString())


def wrong_dimensions(good: Good, folder: Path) -> Path:
    weight = onnx.numpy_helper.from_array(np.ones((5, 4), np.float32), "w")
    return _onnx(folder, [helper.make_node("MatMul", ["x", "w"], ["y"], "product")], constants=[weight])


def nan_weights(good: Good, folder: Path) -> Path:
    weight = onnx.numpy_helper.from_array(np.full((4, 4), np.nan, np.float32), "w")
    return _onnx(folder, [helper.make_node("MatMul", ["x", "w"], ["y"], "product")], constants=[weight])


def external_data_outside(good: Good, folder: Path) -> Path:
    _file(folder / "secret", bytes(64))
    (folder / "model").mkdir()
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4, 4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    return _onnx(folder / "model", [helper.make_node("MatMul", ["x", "w"], ["y"])], constants=[tensor])


def wrong_payload(good: Good, folder: Path) -> Path:
    """Packed weights a column too short."""
    model = onnx.load(good.onnx)
    decoder = next(node for node in model.graph.node if node.op_type == "DecodeTernary")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == decoder.input[0])
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array[:, :-1]), tensor.name))
    return _file(folder / "bad.onnx", model.SerializeToString())


def _onnx(
    folder: Path, nodes: Sequence[onnx.NodeProto], shape: Sequence[Any] = (1, 4), constants: Sequence[Any] = ()
) -> Path:
    x, y = (helper.make_tensor_value_info(name, FLOAT, shape) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "g", [x], [y], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return _file(folder / "bad.onnx", model.SerializeToString())


# ---- checkpoints ----


def checkpoint_of_another_model(good: Good, folder: Path) -> Path:
    """The tensors of one model with the description of a wider one, hashes in order."""
    shutil.copytree(good.run, folder / "run")
    path = folder / "run" / "checkpoint.json"
    description = json.loads(path.read_text())
    description["config"]["outputs"] = 7
    path.write_text(json.dumps(description))
    return folder / "run"


def damaged_checkpoint(good: Good, folder: Path) -> Path:
    shutil.copytree(good.run, folder / "run")
    path = weights_file(folder / "run")
    _file(path, path.read_bytes()[:-100])
    return folder / "run"


def damaged_description(good: Good, folder: Path) -> Path:
    shutil.copytree(good.run, folder / "run")
    _file(folder / "run" / "checkpoint.json", b'{"kind": "subbyte checkpoint", "version": 1, "config": [')
    return folder / "run"


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- the test ----

INSPECT = ("inspect", "{bad}")
RUN = ("run", "{bad}", "--input", "{x}", "--output", "{out}/y.npy")
BENCH = ("bench", "{bad}", "--iterations", "1", "--json", "{out}/b.json")
COMPILE = ("compile", "{bad}", "-o", "{out}/x.subbyte")
EXPORT = ("export", "{bad}", "-o", "{out}/x.onnx")

CASES: list[tuple[Callable[[Good, Path], Path], tuple[str, ...], str]] = [
    *(
        (maker, command, words)
        for maker, words in (
            (truncated_bundle, "truncated"),
            (deflated_bundle, "re-zipped"),
            (changed_bundle, "SHA-256"),
            (escaping_bundle, "evil"),
        )
        for command in (INSPECT, RUN, BENCH)
    ),
    (archive_of_arrays, ("run", "{bundle}", "--input", "{bad}", "--output", "{out}/y.npy"), "numpy.save"),
    (foreign_bundle, RUN, "cortex-a53"),
    (foreign_bundle, BENCH, "cortex-a53"),
    (truncated_onnx, INSPECT, "bad.onnx"),
    (truncated_onnx, COMPILE, "bad.onnx"),
    (unknown_operator, COMPILE, "Softmax"),
    (cycle, INSPECT, "cycle through node 'a'"),
    (cycle, COMPILE, "cycle through node 'a'"),
    (dynamic_shape, COMPILE, "dynamic shape"),
    *((opset_of_the_future, command, "opset 99") for command in (INSPECT, COMPILE)),
    *((no_outputs, command, "no outputs") for command in (INSPECT, COMPILE)),
    *((wrong_dimensions, command, "product") for command in (INSPECT, COMPILE)),
    (nan_weights, COMPILE, "tensor 'w': 16 of its 16 elements"),
    (external_data_outside, INSPECT, "outside"),
    (external_data_outside, COMPILE, "outside"),
    (wrong_payload, INSPECT, "uint8"),
    (wrong_payload, COMPILE, "uint8"),
    (checkpoint_of_another_model, EXPORT, ".safetensors: tensor '5."),
    (damaged_checkpoint, EXPORT, ".safetensors: damaged or truncated"),
    (damaged_description, EXPORT, "checkpoint.json"),
]


@pytest.mark.parametrize(
    ("maker", "command", "words"), CASES, ids=[f"{maker.__name__}-{command[0]}" for maker, command, _ in CASES]
)
def test_a_bad_file_is_refused_in_one_line(
    good: Good, maker: Callable[[Good, Path], Path], command: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    bad = maker(good, tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 4, 4), np.float32))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments = [part.format(bad=bad, bundle=good.bundle, x=tmp_path / "x.npy", out=tmp_path) for part in command]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
    assert words in result.output
    assert "Traceback" not in result.output
    assert "not an error subbyte expects" not in result.output
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_compile_refuses_a_wrong_file_before_it_imports_tvm(good: Good, tmp_path: Path) -> None:
    """The import takes seconds. A right file is read once, and given to the compiler as it was read."""
    code = (
        "import sys; from subbyte.cli import main; status = main(['compile', *sys.argv[1:]], standalone_mode=False); "
        "print(status, 'tvm' in sys.modules)"
    )
    bad = _file(tmp_path / "bad.onnx", good.onnx.read_bytes()[:-100])
    for file, words in ((bad, "1 False"), (good.onnx, "None True")):
        command = [sys.executable, "-c", code, str(file), "-o", str(tmp_path / "m.subbyte"), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == words, done.stderr
        assert ("bad.onnx" in done.stderr) == (file == bad)


def test_without_memory_a_command_says_so(good: Good, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("subbyte.runtime.session.load", exhausted)
    result = CliRunner().invoke(main, ["check", str(good.bundle)])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "error: `subbyte check` takes more memory than there is; give" in result.output


def test_a_bundle_is_known_by_its_content(good: Good, tmp_path: Path) -> None:
    named = _file(tmp_path / "model.onnx", good.bundle.read_bytes())
    result = CliRunner().invoke(main, ["compile", str(named), "-o", str(tmp_path / "x.subbyte")])
    assert (result.exit_code, "it is a .subbyte bundle: compiled already" in result.output) == (1, True), result.output
    assert CliRunner().invoke(main, ["inspect", str(named)]).exit_code == 0
    result = CliRunner().invoke(main, ["export", str(named), "-o", str(tmp_path / "x.onnx")])
    assert (result.exit_code, "it is a .subbyte bundle; expected the folder" in result.output) == (2, True)


def test_inspect_says_what_it_cannot_count_and_gives_no_silly_ratio(good: Good, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(dynamic_shape(good, tmp_path))])
    assert result.exit_code == 0, result.output
    assert "holds no weights" in result.output
    assert "smaller" not in result.output
    assert "warning: input 'x' has a dynamic shape [batch, 4]" in " ".join(result.output.split())
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    small = _onnx(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], constants=[weight])
    assert "take 64: no smaller." in CliRunner().invoke(main, ["inspect", str(small)]).output


def test_a_name_of_any_length_is_printed_in_short_and_stored_whole(good: Good, tmp_path: Path) -> None:
    """Ten million characters: rich, which folds cells, took most of a minute for them."""
    model, name = onnx.load(good.onnx), "a" * 5_000_000 + "b" * 5_000_000
    product = next(node for node in model.graph.node if node.op_type in ("Gemm", "MatMul"))
    product.name = name
    onnx.save(model, tmp_path / "long.onnx")
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "long.onnx")])
    assert shown.exit_code == 0, shown.output
    joined = "".join(line.split(" ")[0] for line in shown.output.splitlines())
    assert "a" * 100 + "b" * 100 in joined
    assert "a" * 101 not in joined
    stored = CliRunner().invoke(main, ["inspect", "--json", str(tmp_path / "long.onnx")])
    assert name in [layer["name"] for layer in json.loads(stored.output)["layers"]]


def test_the_good_files_are_accepted(good: Good, tmp_path: Path) -> None:
    """Otherwise the refusals above could have another cause; a single output has the model's own name for it."""
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 4, 4), np.float32))
    result = CliRunner().invoke(main, ["run", str(good.bundle), "--input", str(tmp_path / "x.npy")])
    assert result.exit_code == 0, result.output
    with subbyte.load(good.bundle) as session:
        assert result.output.startswith(f"{session.outputs[0].name} float32 [1, 3]")
    assert CliRunner().invoke(main, ["inspect", str(good.onnx)]).exit_code == 0
    assert load_checkpoint(good.run).config.model == "mlp"
