"""Two models in one program: from C sources, and from static archives; each gives its golden outputs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper, save

from subbyte.cli import main
from subbyte.errors import UsageError
from subbyte.runtime import open_bundle
from subbyte.tvm_kernels import compile
from subbyte.tvm_kernels.emit.core import core_folder
from subbyte.tvm_kernels.emit.names import names_of

NAMES = {"first": 3, "second": 4}  # seeds of the weights
FLAGS = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror"]
MAIN = """
#include <stdio.h>
#include <stdlib.h>
{includes}
static void *room(size_t bytes) {{
  char *memory = (char *)calloc(1, bytes + 64);
  return memory + (64 - (uintptr_t)memory % 64) % 64;
}}
static void *file(const char *path, size_t bytes) {{
  void *memory = room(bytes);
  FILE *stream = fopen(path, "rb");
  if (stream == NULL || fread(memory, 1, bytes, stream) != bytes) exit(1);
  fclose(stream);
  return memory;
}}
static void run(const subbyte_model *model, const void *weights, const char *input, const char *output) {{
  const void *inputs[1];
  void *outputs[1];
  subbyte_buffers buffers;
  FILE *stream = fopen(output, "wb");
  inputs[0] = file(input, model->inputs[0].nbytes);
  outputs[0] = room(model->outputs[0].nbytes);
  buffers.weights = weights;
  buffers.arena = room(model->arena_bytes);
  buffers.workspace = room(model->workspace_bytes);
  buffers.inputs = inputs;
  buffers.outputs = outputs;
  if (stream == NULL || subbyte_run(model, &buffers, NULL, NULL) != SUBBYTE_OK) exit(1);
  fwrite(outputs[0], 1, model->outputs[0].nbytes, stream);
  fclose(stream);
}}
int main(void) {{
{calls}
  return 0;
}}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """An ONNX file for each name: a quantized convolution with its own weights, and steps that are powers of two."""
    for name, seed in NAMES.items():
        weights = np.random.default_rng(seed).integers(-7, 8, (4, 3, 3, 3)).astype(np.int8)
        scalars = {"s": np.float32(2**-4), "z": np.uint8(0), "ws": np.float32(2**-3)}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"]),
            helper.make_node("Conv", ["d", "wd"], ["y"], pads=[1] * 4),
        ]
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in {**scalars, "w": weights}.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        save(model, tmp_path / f"{name}.onnx")
    return tmp_path


def compiled(files: Path, target: str) -> dict[str, Path]:
    """A folder with the members of each bundle, compiled by the command line under names of their own."""
    folders = {}
    for name in NAMES:
        bundle = files / f"{name}.subbyte"
        command = [
            "compile",
            str(files / f"{name}.onnx"),
            "--target",
            target,
            "--name",
            f"my_{name}",
            "-o",
            str(bundle),
            *(["--archive"] if target == "host" else []),
        ]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        with open_bundle(bundle) as opened:
            assert opened.manifest.name == f"my_{name}"
            for member in opened.manifest.members:
                path = files / name / member
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(opened.read(member))
        np.load(files / name / "golden/input_0.npy").tofile(files / name / "input")
        folders[name] = files / name
    return folders


def check(folders: dict[str, Path], files: Path) -> None:
    """The program's outputs are the golden ones, and the two models have others."""
    subprocess.run(["./program"], cwd=files, check=True, timeout=600)
    golden = {name: np.load(folder / "golden/output_0.npy") for name, folder in folders.items()}
    for name, folder in folders.items():
        got = np.fromfile(folder / "output", np.float32).reshape(golden[name].shape)
        np.testing.assert_array_equal(got, golden[name])
    assert (golden["first"] != golden["second"]).any()


def test_sources_of_two_models_link(files: Path) -> None:
    folders = compiled(files, "cortex-m4")
    includes = "\n".join(f'#include "{name}/source/model.h"' for name in NAMES)
    calls = "\n".join(
        f'  run(subbyte_get_my_{name}_model(), subbyte_my_{name}_weights, "{name}/input", "{name}/output");'
        for name in NAMES
    )
    (files / "main.c").write_text(MAIN.format(includes=includes, calls=calls))
    own = [f"{name}/source/{part}.c" for name in NAMES for part in ("kernels", "model", "weights")]
    core = [f"first/source/{part}.c" for part in ("run", "needs")]
    subprocess.run(["gcc", *FLAGS, "main.c", *own, *core, "-lm", "-o", "program"], cwd=files, check=True, timeout=600)
    check(folders, files)


def test_names_that_differ_by_case_alone_are_told_apart(files: Path) -> None:
    """The symbols differ, the macros do not: #error, not the first model's sizes for both."""
    for name in ("a", "A"):
        report = compile(files / "first.onnx", files / "m.subbyte", target="cortex-m4", name=name, keep=files / name)
        assert report.name == name
    includes = '#include "a/source/model.h"\n#include "A/source/model.h"\n'
    for text, status in ((includes.splitlines()[0], 0), (includes, 1)):
        (files / "main.c").write_text(f"{text}\nint main(void) {{ return 0; }}\n")
        done = subprocess.run(["gcc", *FLAGS, "-c", "main.c"], cwd=files, capture_output=True, text=True)
        assert done.returncode == status
    assert "another model's name is 'A' but for case" in done.stderr


def test_archives_of_two_models_link(files: Path) -> None:
    folders = compiled(files, "host")
    names = {name: f"subbyte_get_my_{name}_model" for name in NAMES}
    declared = "\n".join(f"const subbyte_model *{get_model}(void);" for get_model in names.values())
    calls = "\n".join(
        f'  run({names[name]}(), file("{name}/weights.bin", {names[name]}()->weights_bytes), '
        f'"{name}/input", "{name}/output");'
        for name in NAMES
    )
    (files / "main.c").write_text(MAIN.format(includes=f'#include "subbyte.h"\n{declared}', calls=calls))
    archives = [f"{name}/library.a" for name in NAMES]
    command = ["gcc", *FLAGS, f"-I{core_folder()}", "main.c", *archives, "-lm", "-lpthread", "-o", "program"]
    subprocess.run(command, cwd=files, check=True, timeout=600)
    check(folders, files)


@pytest.mark.parametrize("name", ["", "my-net", "2net", "a b", "né", "x" * 65, "a;b"])
def test_a_name_that_c_cannot_spell_is_refused(name: str, files: Path) -> None:
    with pytest.raises(UsageError, match="is not a C identifier"):
        compile(files / "first.onnx", files / "out.subbyte", name=name)
    done = CliRunner().invoke(main, ["compile", str(files / "first.onnx"), "--name", name])
    assert done.exit_code != 0
    assert "is not a C identifier" in done.output
    assert not (files / "out.subbyte").exists()


def test_names_of_files_become_identifiers() -> None:
    assert names_of("ds_cnn").get_model == "subbyte_get_ds_cnn_model"
    assert names_of("ds-cnn v2.é").symbol("weights") == "subbyte_ds_cnn_v2___weights"
    assert names_of("ds-cnn").macro("ARENA_BYTES") == "SUBBYTE_DS_CNN_ARENA_BYTES"
    assert names_of("").model == "model"
