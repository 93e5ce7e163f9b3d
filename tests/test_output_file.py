"""The one writer of files: whole or not at all, by the umask, through links, into pipes; and no other beside it."""

from __future__ import annotations

import os
import re
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pages import PACKAGES
from this_machine import needs, with_mount

import subbyte
from subbyte.errors import SubbyteError, UsageError, WriteError
from subbyte.files.kinds import kind_of
from subbyte.files.output import check_output_folder, checked_output, is_stdout, output_file, write_file
from subbyte.files.plain import open_plain, read_plain


def check_output(path: str | Path, what: str, *inputs: Path | None) -> None:
    with checked_output(path, what, *inputs):
        pass


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "plain", "executable"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755)])
def test_the_umask_decides_who_may_read(tmp_path: Path, mask: int, plain: int, executable: int) -> None:
    with umask(mask):
        write_file(tmp_path / "a", b"a")
        write_file(tmp_path / "b", b"b", executable=True)
    assert (mode(tmp_path / "a"), mode(tmp_path / "b")) == (plain, executable)


def test_a_file_that_was_closed_to_others_stays_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o600)
    with umask(0o022):
        write_file(tmp_path / "a", b"new")
    assert (mode(tmp_path / "a"), (tmp_path / "a").read_bytes()) == (0o600, b"new")


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"old")
    (tmp_path / "second").symlink_to("there/file")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    (tmp_path / "new").symlink_to("there/new")
    write_file(tmp_path / "first", b"one")
    write_file(tmp_path / "new", b"two")
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"one"
    assert (tmp_path / "there" / "new").read_bytes() == b"two"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(WriteError, match="in a circle"):
        write_file(tmp_path / "circle", b"")


@needs(os.geteuid() == 0, "root for its tests, who alone can plant a link")
def test_a_link_that_another_user_planted_is_refused(tmp_path: Path) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir()
    shared.chmod(0o1777)
    victim.write_bytes(b"precious")
    (shared / "y").symlink_to(victim)
    os.lchown(shared / "y", 12345, 12345)
    for write in (lambda: write_file(shared / "y", b"x"), lambda: check_output(shared / "y", "--output")):
        with pytest.raises(UsageError, match="a link of another user"):
            write()
    assert victim.read_bytes() == b"precious"


def test_no_name_can_be_guessed(tmp_path: Path) -> None:
    with output_file(tmp_path / "a") as one, output_file(tmp_path / "a") as two:
        assert one.name != two.name
        assert re.fullmatch(r"\.subbyte-[0-9a-f]{16}\.tmp", Path(one.name).name)


def test_of_two_writers_at_once_one_gives_the_whole_file(tmp_path: Path) -> None:
    contents = [bytes([index]) * 3_000_000 for index in range(6)]
    with ThreadPoolExecutor(len(contents)) as threads:
        for _ in range(5):
            list(threads.map(lambda content: write_file(tmp_path / "a", content), contents))
            assert (tmp_path / "a").read_bytes() in contents
    assert os.listdir(tmp_path) == ["a"]


# ---- failures ----


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), subbyte.errors.BundleError("no")])
def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def interrupted() -> None:
        with output_file(tmp_path / "a") as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupt_in_any_step_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@contextmanager
def files_of_at_most(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with files_of_at_most(100_000), pytest.raises(WriteError, match="larger than a file may be here"):
        write_file(tmp_path / "a", bytes(200_000))
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


WRITE = """
import os, sys
from pathlib import Path
from subbyte.files.output import check_output_folder, checked_output, write_file
from subbyte.errors import SubbyteError
folder = Path(sys.argv[1])
for step in (
    lambda: checked_output(folder / "a", "--output").__enter__(),
    lambda: check_output_folder(folder / "runs" / "t", "--out"),
    lambda: write_file(folder / "a", bytes(1 << 20)),
):
    try:
        step()
        print("ok")
    except SubbyteError as error:
        print(error.exit_code, error)
print(sorted(os.listdir(folder)))
"""


def written_in(folder: Path, mount: str) -> list[str]:
    """What asking and writing say in a folder on a disk of its own, and what is in it after."""
    command = with_mount(mount.format(folder), sys.executable, "-c", WRITE, str(folder))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(str(folder), "").splitlines()


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    asked, asked_folder, wrote, left = written_in(tmp_path, "mount -t tmpfs -o size=128k none {}")
    assert (asked, asked_folder) == ("ok", "ok")
    assert wrote == "1 cannot write '/a': the disk is full; free some space, or name another place"
    assert left == "[]"


def test_a_full_disk_is_known_before_the_work(tmp_path: Path) -> None:
    fill = "mount -t tmpfs -o size=64k none {0} && (dd if=/dev/zero of={0}/z bs=4k count=99 2>/dev/null; true)"
    asked, asked_folder, _, left = written_in(tmp_path, fill)
    assert asked == "1 --output /a: the disk is full; free some space, or name another place"
    assert asked_folder == "1 --out /runs/t: the disk is full; free some space, or name another place"
    assert left == "['z']"


def test_a_read_only_disk_is_known_before_the_work(tmp_path: Path) -> None:
    asked, asked_folder, wrote, left = written_in(tmp_path, "mount -t tmpfs -o ro none {}")
    assert asked == "1 --output /a: the disk is read-only; name another place"
    assert asked_folder == "1 --out /runs/t: the disk is read-only; name another place"
    assert wrote == "1 cannot write '/a': the disk is read-only; name another place"
    assert left == "[]"


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SubbyteError, match="make it first"):
        check_output("a", "--output")
    with pytest.raises(SubbyteError, match="make it first"):
        check_output_folder("a", "--out")
    with pytest.raises(WriteError, match="make it first"):
        write_file("a", b"")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "^--output .*: that is a folder"),
        ("no/a", "there is no folder"),
        ("a" * 300, "the name is too long"),
        ("file/a", "there is no folder"),
        ("a\0b", "null"),
    ],
)
def test_places_that_cannot_be_are_refused_before_and_after(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SubbyteError, match=words):
        check_output(str(tmp_path / path), "--output")
    with pytest.raises(SubbyteError):
        write_file(str(tmp_path / path), b"")
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"read")
    (tmp_path / "link").symlink_to("a")
    for place, read in (("a", "a"), ("link", "a"), ("a", "link")):
        with pytest.raises(UsageError, match="a file this command reads"):
            check_output(tmp_path / place, "--output", None, tmp_path / "none", tmp_path / read)
    check_output(tmp_path / "b", "--output", tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "link"]


def test_what_no_one_named_is_not_replaced_either_once_it_is_read(tmp_path: Path) -> None:
    """By whatever name it is opened; other files are read, and it is, too, before and after."""
    (tmp_path / "a").write_bytes(b"read")
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "link").symlink_to("a")
    os.link(tmp_path / "a", tmp_path / "hard")
    for place in ("a", "link"):
        with checked_output(tmp_path / place, "--output"), checked_output(tmp_path / "new", "--json"):
            for read in ("a", "link", "hard"):
                with pytest.raises(UsageError, match=f"^--output .*/{place}: .* this command reads .*/{read}'"):
                    open_plain(tmp_path / read)
                assert kind_of(tmp_path / read) is None
            assert read_plain(tmp_path / "other", 9) == b"other"
        assert read_plain(tmp_path / "a", 9) == b"read"
    with checked_output(tmp_path / "a", "--output"), checked_output(None, "--json"):
        write_file(tmp_path / "a", b"written")
        assert read_plain(tmp_path / "a", 9) == b"written"


# ---- pipes and devices ----


def test_a_pipe_gets_the_content_and_stays(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    check_output(pipe, "--output")
    write_file(pipe, b"content" * 100_000)
    reader.join()
    assert got == [b"content" * 100_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_devices_are_written_into(tmp_path: Path) -> None:
    write_file("/dev/null", b"content")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(WriteError, match="'/dev/full': the disk is full"):
        write_file("/dev/full", b"content")
    assert not is_stdout(tmp_path / "a")


STDOUT = """
import sys
from subbyte.files.output import is_stdout, write_file
print("before")
write_file(sys.argv[1], b"content\\n")
print("after", is_stdout(sys.argv[1]))
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_is_written_into(tmp_path: Path, name: str) -> None:
    """What was printed before comes before it, what is printed after comes after; in a file, too."""
    command = [sys.executable, "-c", STDOUT, name]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "before\ncontent\nafter True\n"
    with (tmp_path / "out").open("wb") as file:
        assert subprocess.run(command, stdout=file).returncode == 0
    assert (tmp_path / "out").read_text() == "before\ncontent\nafter True\n"


def test_a_reader_that_goes_away_is_an_error_of_ours(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(WriteError, match="its reader went away"):
        write_file(f"/dev/fd/{write}", bytes(1 << 20))
    os.close(write)


# ---- no other writer ----

WRITES = re.compile(
    r"""open\([^)\n]*["'][rwxab+]*[wxa][rwxab+]*["']|\.write_(?:bytes|text)\(|os\.replace\(|\.rename\(|shutil\.(?:copy|move)"""
    r"""|onnx\.save|save_file\(|np\.savez?\((?!file|held)|mkstemp|\.tofile\(|\.touch\("""
)
PRIVATE = {  # files of a temporary folder, which no user names
    "files/output.py",
    "tvm_kernels/emit/shared_library.py",
    "tvm_kernels/emit/bench_program.py",
    "tvm_kernels/emit/board_memory.py",
    "tvm_kernels/emit/source_files.py",
    "runtime/native.py",
    "export/baselines.py",
}


def test_nothing_else_writes_files() -> None:
    root = Path(subbyte.__file__).parent.parent
    found = {
        str(path.relative_to(root)): match[0]
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        for match in [WRITES.search(path.read_text())]
        if match
    }
    assert {path: words for path, words in found.items() if path not in PRIVATE} == {}
    assert sorted(found.keys() & PRIVATE) == sorted(PRIVATE)
