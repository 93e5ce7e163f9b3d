"""Files that others made: plain ones are read, and what would block or never end is refused in words."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from subbyte.cli import main
from subbyte.errors import CheckpointError, DataError, EnergyError, UsageError
from subbyte.files.kinds import kind_of
from subbyte.files.plain import open_plain, read_plain, size_of
from subbyte.models.data import ImageFolder, read_idx
from subbyte.models.train.state import TrainingStateIO
from subbyte.runtime.meter_csv import read_csv
from subbyte.tvm_kernels.golden_inputs import read_inputs
from subbyte.tvm_kernels.plan import Tensor


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with open_plain(tmp_path / "x") as file:
        assert (size_of(file), file.read()) == (3, b"abc")
    assert read_plain(tmp_path / "x", 3) == b"abc"
    with pytest.raises(OSError, match="it has 3 bytes, at most 2 are read"):
        read_plain(tmp_path / "x", 2)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _terminal(path: Path) -> None:
    """A device that would block."""
    path.symlink_to(os.ttyname(os.openpty()[1]))


@pytest.mark.parametrize(("make", "words"), [(_pipe, "a pipe"), (_device, "a device"), (_terminal, "a device")])
def test_what_is_no_file_is_refused(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(OSError, match=f"it is {words}, not a plain file"):
        open_plain(tmp_path / "x")
    assert kind_of(tmp_path / "x") is None


@given(
    st.sampled_from(
        [b"", b"PK\x03\x04", b"\x93NUMPY", b"\x08\x0a", b"\x80\x02", b"\x89PNG", b"{", b"<html", b"\x1f\x8b"]
    ),
    st.binary(max_size=700),
    st.sampled_from([b"", b"PK\x05\x06" + bytes(18), b"PK\x06\x07"]),
    st.sampled_from(["x.onnx", "x.subbyte", "x.npz", "x"]),
)
def test_classification_never_raises(start: bytes, middle: bytes, end: bytes, name: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(start + middle + end)
        assert kind_of(path) is None or isinstance(kind_of(path), str)
        path.unlink()
        assert kind_of(path) is None
        assert kind_of(path / "\0") is None
        assert kind_of(path / ("a" * 5000)) is None


def test_archives_are_told_by_their_first_member(tmp_path: Path) -> None:
    """Without a look at their directory, which a hostile file may make as large as itself."""
    np.savez(tmp_path / "x", x=np.zeros(3))
    assert kind_of(tmp_path / "x.npz") == "an archive of NumPy arrays (.npz)"
    torch.save({"x": torch.zeros(3)}, tmp_path / "x.pt")
    assert kind_of(tmp_path / "x.pt") == "a file of torch.save (.pt, .pth)"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "")
        archive.comment = b"c" * 60_000
    assert kind_of(tmp_path / "x.zip") == "a zip archive"
    (tmp_path / "x.zip").write_bytes((tmp_path / "x.npz").read_bytes()[:-30])
    assert kind_of(tmp_path / "x.zip") == "a damaged or truncated zip archive"


def test_a_link_is_followed_unless_asked_not_to(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with open_plain(tmp_path / "link") as file:
        assert file.read() == b"abc"
    with pytest.raises(OSError, match="symbolic links"):
        open_plain(tmp_path / "link", follow=False)


COMMANDS = [
    ("compile", "{pipe}"),
    ("inspect", "{pipe}"),
    ("export", "{folder}"),
    ("run", "{pipe}", "--input", "{x}"),
    ("bench", "{pipe}"),
    ("check", "{pipe}"),
    ("check", "{folder}", "{pipe}"),
    ("verdict", "{pipe}"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_waits_for_a_pipe(command: tuple[str, ...], tmp_path: Path) -> None:
    """Nobody writes into these pipes: the failure is a hang."""
    places = {name: tmp_path / name for name in ("pipe", "folder", "x")}
    os.mkfifo(places["pipe"])
    places["folder"].mkdir()
    for name in ("checkpoint.json", "model.safetensors"):
        os.mkfifo(places["folder"] / name)
    np.save(tmp_path / "x.npy", np.zeros(1, np.float32))
    arguments = [part.format(**places).replace("/x", "/x.npy") for part in command]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    assert "not an error subbyte expects" not in result.output


def test_pipes_among_the_files_of_other_readers_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(UsageError, match=r"golden input .*x.npy cannot be read: it is a pipe, not a plain file"):
        read_inputs(tmp_path / "x.npy", [Tensor("x", "float32", (1, 4))])
    with pytest.raises(EnergyError, match="it is a pipe, not a plain file"):
        read_csv(tmp_path / "x.npy")
    with pytest.raises(DataError, match="it is a pipe, not a plain file"):
        read_idx(tmp_path / "x.npy", 0x803)
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match="it is a pipe, not a plain file"):
        ImageFolder(tmp_path, ["cat"], (8, 8), random_crop=False)[0]
    with pytest.raises(CheckpointError, match="it is a pipe, not a plain file"):
        TrainingStateIO().load_checkpoint(tmp_path / "x.npy")
