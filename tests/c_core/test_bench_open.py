"""How the bench program reads a bundle: the members as they were written, or a reason; under the sanitizers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bench_parts import program_of_parts

import subbyte.runtime

HERE = Path(__file__).parent
CORE = Path(subbyte.runtime.__file__).parent / "c"
NAME, HEADER = "golden/input_0.npy", 10
DATA = bytes(range(200)) * 3
OTHERS = {"weights.bin": b"w" * 64, NAME: DATA, "manifest.json": b"{}"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of_parts(tmp_path_factory.mktemp("open"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "t.subbyte"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in OTHERS.items():
            file.writestr(name, data)
    return path


def read(program: Path, path: Path, data: bytes = DATA) -> tuple[bool, str]:
    """Whether the member was read, and the SHA-256 of its data or the error."""
    member = [NAME, str(len(data)), str(HEADER), hashlib.sha256(data).hexdigest()]
    environment = {"ASAN_OPTIONS": "detect_leaks=0:exitcode=99"}
    done = subprocess.run(
        [program, "member", path, *member], capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode in (0, 1), done.stderr
    if done.returncode == 0:
        return True, json.loads(done.stdout)[0]
    assert done.stderr.startswith("error: ")
    return False, done.stderr


WANTED = hashlib.sha256(DATA[HEADER:]).hexdigest()


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000])
def test_the_hash_is_sha256(program: Path, length: int) -> None:
    text = "ab\xe9"[: length % 4] + "x" * length
    done = subprocess.run([program, "sha256", text], capture_output=True, text=True, timeout=600, check=True)
    assert json.loads(done.stdout) == [hashlib.sha256(os.fsencode(text)).hexdigest()]


def test_a_member_is_read_from_the_file_and_from_the_folder(program: Path, bundle: Path, tmp_path: Path) -> None:
    assert read(program, bundle) == (True, WANTED)
    with zipfile.ZipFile(bundle) as file:
        file.extractall(tmp_path)
    assert read(program, tmp_path) == (True, WANTED)


def test_what_is_not_the_bundle_is_refused_with_the_reason(program: Path, bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"not a zip file, but longer than its end record")
    (tmp_path / "short").write_bytes(bundle.read_bytes()[:-30])
    with zipfile.ZipFile(tmp_path / "deflated", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(NAME, DATA)
    with zipfile.ZipFile(tmp_path / "foreign", "w") as file:
        file.writestr("source/model.c", DATA)
    reasons = {
        "none": "No such file or directory",
        "pipe": "neither a file nor a folder",
        "empty": "too small for a zip file",
        "text": "does not end as a zip file does",
        "short": "does not end as a zip file does",
        "deflated": "zipped again, or damaged",
        "foreign": "there is no such member",
        ".": "unpack all of it here (unzip t.subbyte -d FOLDER)",
    }
    for name, reason in reasons.items():
        is_read, said = read(program, tmp_path / name)
        assert not is_read
        assert reason in said, said
    for other, reason in ((DATA[:-1], "has 600 bytes, expected 599"), (DATA[:-1] + b"!", "wrong SHA-256")):
        is_read, said = read(program, bundle, other)
        assert not is_read
        assert reason in said, said
    folder = tmp_path / "unpacked" / "golden"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "input_0.npy")
    assert "Invalid argument" in read(program, folder.parent)[1]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
    st.booleans(),
)
def test_a_damaged_file_gives_the_member_or_a_reason(
    program: Path, bundle: Path, changes: list[tuple[float, int]], kept: float, cut: bool
) -> None:
    """Bytes of the directory and of the headers become others: never other data, never a crash."""
    data = bytearray(bundle.read_bytes())
    directory = data.index(b"PK\x01\x02")
    for where, value in changes:
        data[directory + int(where * (len(data) - directory))] = value
    path = bundle.with_name("damaged")
    path.write_bytes(data[: int(kept * len(data))] if cut else data)
    is_read, said = read(program, path)
    assert said == WANTED or not is_read
