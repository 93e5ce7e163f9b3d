"""The files of a checkpoint: one rename commits a save, and nothing is taken on their word."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved_checkpoint import config_for, of_an_image, rewrite, trained_a_little

from subbyte.errors import CheckpointError, WriteError
from subbyte.models import create_for_scheme, load_checkpoint, save_checkpoint
from subbyte.models.checkpoint import build_model, weights_file
from subbyte.models.checkpoint_files import DESCRIPTION
from subbyte.models.on_meta import refuse_other_shapes
from subbyte.models.zoo import get_model, list_models, options_for_scheme

# ---- one commit point ----

KILLED = """
import os, pathlib, signal, sys, warnings
import torch
from subbyte.models.checkpoint import Config, build_model, save_checkpoint
warnings.simplefilter("ignore")  # fork in a process of several threads
torch.set_num_threads(1)
config = Config(model="mlp", scheme="float", shape=(1, 4, 4), outputs=3, model_options={"hidden": [5]})
models = []
for seed in (1, 2):
    torch.manual_seed(seed)
    models.append(build_model(config))
left = 0
def count_down(name):
    real = getattr(os, name)
    def call(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    setattr(os, name, call)
for calls in range(40):
    folder = pathlib.Path(sys.argv[1]) / str(calls)
    save_checkpoint(folder, models[0], config, {"epochs": 1})
    child = os.fork()
    if not child:
        left = calls
        for name in ("open", "fsync", "replace", "unlink"):
            count_down(name)
        save_checkpoint(folder, models[1], config, {"epochs": 2})
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status)
    if status != -signal.SIGKILL:
        break
"""


def test_killed_at_any_step_of_a_save_the_old_or_the_new_model_is_read(tmp_path: Path) -> None:
    """The process dies before its first, second, ... call that opens, syncs, renames or deletes a file."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    *killed, last = map(int, done.stdout.split())
    assert (set(killed), last) == ({-signal.SIGKILL}, 0), done.stderr
    assert len(killed) > 8
    config = config_for("float", outputs=3, shape=(1, 4, 4), model_options={"hidden": [5]})
    seen = []
    for calls in range(len(killed) + 1):
        folder = tmp_path / str(calls)
        loaded = load_checkpoint(folder)
        seen.append(int(loaded.metrics["epochs"]))
        torch.manual_seed(seen[-1])
        expected = build_model(config).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
        save_checkpoint(folder, loaded.model, loaded.config)  # clears what the killed one left
        left = {file.name for file in folder.iterdir() if not file.name.endswith(".tmp")}
        assert left == {DESCRIPTION, weights_file(folder).name}
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


def test_saves_of_several_threads_leave_one_whole_checkpoint(tmp_path: Path) -> None:
    config = config_for("float", model_options={"hidden": [5]})
    models = [create_for_scheme("mlp", "float", classes=10, channels=1, size=(8, 8), hidden=[5]) for _ in range(8)]

    def save(index: int) -> None:
        for _ in range(10):
            save_checkpoint(tmp_path, models[index], config, {"index": index})
            load_checkpoint(tmp_path)

    with ThreadPoolExecutor(len(models)) as threads:
        list(threads.map(save, range(len(models))))
    loaded = load_checkpoint(tmp_path)
    expected = models[int(loaded.metrics["index"])].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
    assert sorted(tmp_path.iterdir()) == [tmp_path / DESCRIPTION, weights_file(tmp_path)]


def test_a_failed_save_leaves_the_old_checkpoint_alone(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    real = os.replace

    def full(source: Any, target: Path) -> None:
        if target.name == DESCRIPTION:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    config = config_for("ternary")
    with pytest.raises(WriteError, match="the disk is full; free some space"):
        save_checkpoint(saved, trained_a_little(config).float(), config, {"accuracy": 0.1})
    other = config_for("float")
    with pytest.raises(WriteError, match="the disk is full"):
        save_checkpoint(saved, trained_a_little(other), other)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_a_save_that_is_interrupted_once_its_tensors_are_in_place_leaves_none(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of tensors has its name, and its writer has not returned."""
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    real = os.replace

    def interrupted(source: Any, target: Path) -> None:
        real(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    other = config_for("float")
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, trained_a_little(other), other)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_a_checkpoint_of_version_2_is_read(saved: Path) -> None:
    """Its tensors had one name for all, and it was of images; the next save replaces them by name."""
    weights_file(saved).rename(saved / "model.safetensors")
    description = of_an_image(json.loads((saved / DESCRIPTION).read_text()))
    description |= {"version": 2, "weights": {**description["weights"], "file": "model.safetensors"}}
    (saved / DESCRIPTION).write_text(json.dumps(description))
    loaded = load_checkpoint(saved)
    assert (loaded.config.shape, loaded.config.outputs, loaded.config.task) == ((1, 8, 8), 10, "classification")
    save_checkpoint(saved, loaded.model, loaded.config)
    assert sorted(saved.iterdir()) == [saved / DESCRIPTION, weights_file(saved)]


# ---- bounds ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_options={"hidden": [10**6, 10**6]}), r"is \[12, 64\], expected \[1000000, 64\]"),
        (lambda c: c.update(model_options={"hidden": [4] * 10**5}), "its model over 1"),
        (lambda c: c.update(model_options={"hidden": [10**18, 10**18]}), "cannot be made from its options"),
        (lambda c: c.update(model="vit_micro", model_options={"depth": 10**8}), "its model over 1"),
        (lambda c: c.update(shape=[1, 10**6, 10**6]), "at most 67108864 are accepted"),
        (lambda c: c.update(shape=[1, 0, 8]), "'shape' is 0, expected at least 1"),
        (lambda c: c.update(outputs=-1), "'outputs' is -1"),
        (lambda c: c.update(shape=[10**30, 8, 8]), "at most 67108864 are accepted"),
        (lambda c: c["normalization"].update(mean=[float("nan")]), "expected finite numbers"),
        (lambda c: c["normalization"].update(deviation=[0.0]), "above 0"),
        (lambda c: c["normalization"].update(largest=float("inf")), "expected finite numbers"),
        (lambda c: c["normalization"].update(mean=[0.1, 0.2]), "2 values of mean, expected 1 or 1"),
        (lambda c: c.update(seed=10**400), "a number of 401 characters"),
        (lambda c: c["training"].update(learning_rate=Digits(400)), "a number of 402 characters"),
        (lambda c: c["training"].update(epochs=Digits(0, "1e999")), "beyond a float"),
    ],
)
def test_a_description_out_of_bounds_is_refused_before_it_takes_memory(saved: Path, change: Any, message: str) -> None:
    description = json.loads((saved / DESCRIPTION).read_text())
    change(description["config"])
    text = json.dumps(description, default=lambda digits: {"digits": digits.text})
    (saved / DESCRIPTION).write_text(re.sub(r'\{"digits": "([^"]*)"\}', r"\1", text))
    with pytest.raises(CheckpointError, match=message), below(1 << 30):
        load_checkpoint(saved)


class Digits:
    """A number as it is written in a file."""

    def __init__(self, count: int, text: str = "") -> None:
        self.text = text or "0." + "1" * count


@contextmanager
def below(limit: int) -> Iterator[None]:
    """Fails what maps more than `limit` bytes on top of what is mapped."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_an_image_that_takes_too_much_in_a_layer_is_refused(tmp_path: Path) -> None:
    config = config_for("float", "ds_cnn", model_options={})
    save_checkpoint(tmp_path, create_for_scheme("ds_cnn", "float", classes=10, channels=1, size=(8, 8)), config)
    text = (tmp_path / DESCRIPTION).read_text()
    (tmp_path / DESCRIPTION).write_text(re.sub(r'"shape": \[[^]]*\]', '"shape": [1, 8000, 8000]', text))
    with (
        pytest.raises(CheckpointError, match=r"an image of \[1, 1, 8000, 8000\] its model makes a result of"),
        below(1 << 30),
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model-.safetensors", "checkpoint.json", ""])
def test_a_description_names_tensors_of_its_own_folder(saved: Path, name: str) -> None:
    description = json.loads((saved / DESCRIPTION).read_text())
    description["weights"]["file"] = name
    (saved / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="no file that a checkpoint writes"):
        load_checkpoint(saved)


def test_files_of_many_bytes_are_refused_by_their_size(saved: Path) -> None:
    with weights_file(saved).open("r+b") as file, below(1 << 30):
        file.truncate(1 << 40)  # a hole: it takes no space
        with pytest.raises(CheckpointError, match=r"its tensors end at .* of 1099511627776 bytes"):
            load_checkpoint(saved)
    with (saved / DESCRIPTION).open("r+b") as file, below(1 << 30):
        file.truncate(1 << 40)
        with pytest.raises(CheckpointError, match="over 16777216 bytes"):
            load_checkpoint(saved)


def test_a_pipe_is_not_waited_for(saved: Path) -> None:
    weights_file(saved).unlink()
    os.mkfifo(weights_file(saved))
    with pytest.raises(CheckpointError, match="it is a pipe, not a plain file"):
        load_checkpoint(saved)
    (saved / DESCRIPTION).unlink()
    os.mkfifo(saved / DESCRIPTION)
    with pytest.raises(CheckpointError, match="a folder without a checkpoint"):
        load_checkpoint(saved)


HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}, "is at"),
    ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, "a dimension is -1"),
    ({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "a dimension is True"),
    ({"w": {"dtype": "F32", "shape": [2**40, 0, 2**40], "data_offsets": [0, 0]}}, "damaged"),
    ({"w": {"dtype": "F9", "shape": [], "data_offsets": [0, 4]}}, "dtype F9"),
    ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}}, "is at"),
    ({"w": {"dtype": "F32"}}, "damaged"),
    ({"w": 3}, "damaged"),
    ({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "tensors end at"),
]


@pytest.mark.parametrize(("header", "message"), HEADERS)
def test_a_header_that_is_not_of_its_file_is_refused(saved: Path, header: dict[str, Any], message: str) -> None:
    text = json.dumps(header).encode()
    weights_file(saved).write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_a_truth_value_that_is_none_is_refused(saved: Path) -> None:
    """torch keeps or changes such a byte, as it likes."""
    tensors = load_file(weights_file(saved))
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.bool)
    tensors[name] = torch.tensor([8], dtype=torch.uint8).view(torch.bool).reshape(tensors[name].shape)
    rewrite(saved, tensors)
    with pytest.raises(CheckpointError, match=f"'{re.escape(name)}' holds a truth value other than 0 and 1"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", list_models())
def test_every_model_of_the_zoo_is_compared_without_memory(name: str, tmp_path: Path) -> None:
    """Its float form has as many parameters as it registers, and runs on the meta device."""
    entry = get_model(name)
    config = config_for("int4", name, shape=entry.shape(3, 32), input_dtype=entry.input.dtype, normalization=None)
    config = dataclasses.replace(config, model_options=options_for_scheme(name, "int4"))
    save_checkpoint(tmp_path, build_model(config), config)
    stored = load_file(weights_file(tmp_path))
    make = functools.partial(create_for_scheme, name, "int4", shape=config.shape, outputs=10)
    refuse_other_shapes(make, config.example("meta"), stored, tmp_path)
    with pytest.raises(CheckpointError, match="makes a result of"):
        refuse_other_shapes(make, config.example("meta").expand(1 << 22, *config.shape), stored, tmp_path)
