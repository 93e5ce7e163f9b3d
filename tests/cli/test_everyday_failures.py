"""Full disks, closed and full outputs, terminals without letters, folders that are gone: one error of ours each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from this_machine import with_mount

import subbyte
from subbyte.models.checkpoint import Config, build_model, save_checkpoint

SUBBYTE = [sys.executable, "-c", "from subbyte.__main__ import main; main()"]  # as the installed script does
COMMANDS = (["--help"], ["--version"], ["formats"], ["run", "--help"], ["doctor"])


def call(*arguments: str, shell: str = '"$@"', **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, within a line of shell that says what its outputs are."""
    command = ["sh", "-c", shell, "sh", *SUBBYTE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its ONNX file, its bundle and an input."""
    folder = tmp_path_factory.mktemp("made")
    config = Config(model="mlp", scheme="ternary", shape=(1, 4, 4), outputs=3, model_options={"hidden": [8]})
    model = build_model(config).train()
    model(torch.rand(8, 1, 4, 4))
    save_checkpoint(folder / "t", model.eval(), config)
    subbyte.export(folder / "t", folder / "t.onnx", check=False)
    subbyte.compile(folder / "t.onnx", folder / "t.subbyte")
    np.save(folder / "x.npy", np.ones((1, 1, 4, 4), np.float32))
    return folder


# ---- standard output ----


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_standard_output_is_one_error(arguments: list[str], unbuffered: str) -> None:
    done = call(*arguments, shell='"$@" > /dev/full', PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == (
        "error: standard output cannot be written, the disk is full; free some space, or redirect it\n"
    )
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_closed_standard_output_is_one_error(arguments: list[str]) -> None:
    done = call(*arguments, shell='"$@" >&-')
    assert done.stderr == "error: standard output is closed; redirect it, such as > /dev/null\n"
    assert done.returncode == 2


def test_other_closed_streams_change_nothing() -> None:
    expected = call("formats").stdout
    assert "ternary" in expected
    assert call("formats", shell='"$@" <&- 2>&-').stdout == expected
    assert call("trian", shell='"$@" 2>&-').returncode == 2


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library prints there would land in the file."""
    code = """
from subbyte.cli.output import standard_output
with standard_output(), open("file", "w") as file:
    file.write(str(file.fileno()))
"""
    subprocess.run(["sh", "-c", '"$@" <&- 2>&-', "sh", sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert int((tmp_path / "file").read_text()) > 2


def test_a_reader_that_went_away_is_one_error() -> None:
    for arguments in (["formats"], ["doctor"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([*SUBBYTE, *arguments], stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert (done.returncode, done.stderr) == (1, "error: the reader of standard output closed it\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_a_terminal_has_no_letters_for_are_escaped(tmp_path: Path, encoding: str) -> None:
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 4)) for name in "xy"]
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="层")
    graph = helper.make_graph([node], "g", value[:1], value[1:], [weight])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    done = subprocess.run(
        [*SUBBYTE, "inspect", str(path)], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 0, done.stderr
    assert ("层" if encoding == "utf-8" else "\\u5c42") in done.stdout.decode(encoding)


def test_a_name_that_the_locale_cannot_read_is_unicode_in_the_bundle(made: Path, tmp_path: Path) -> None:
    """Or a mark where its bytes are not Unicode."""
    path = os.path.join(os.fsencode(tmp_path), "层".encode() + b"\xff.onnx")
    Path(os.fsdecode(path)).write_bytes((made / "t.onnx").read_bytes())
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [*map(os.fsencode, SUBBYTE), b"compile", path, b"-o", os.fsencode(tmp_path / "y.subbyte")]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **ascii_locale})
    assert done.returncode == 0, done.stderr
    with subbyte.load(tmp_path / "y.subbyte") as session:
        assert session.manifest.name == "层\ufffd"


def test_what_is_written_to_standard_output_is_the_file_alone(made: Path, tmp_path: Path) -> None:
    """The report goes to standard error."""
    for arguments in (
        ("export", "t", "-o", "{}"),
        ("compile", "t.onnx", "-o", "{}"),
        ("run", "t.subbyte", "--input", "x.npy", "--output", "{}"),
    ):
        piped, filed = tmp_path / "piped", tmp_path / "filed"
        for place, target in ((piped, "/dev/stdout"), (filed, str(filed))):
            command = [*SUBBYTE, *(part.format(target) for part in arguments)]
            done = subprocess.run(command, cwd=made, capture_output=True)
            assert done.returncode == 0, done.stderr
            if place is piped:
                place.write_bytes(done.stdout)
                assert done.stderr
        assert piped.read_bytes() == filed.read_bytes() != b""


def test_what_another_file_makes_a_command_read_is_never_replaced(made: Path, tmp_path: Path) -> None:
    """External data, and a meter's log: no option names them as files."""
    model = onnx.load(made / "t.onnx")
    onnx.save(model, tmp_path / "t.onnx", save_as_external_data=True, location="t.data", size_threshold=0)
    log = "time_s,power_w\n" + "".join(f"{second},1\n" for second in range(9))
    (tmp_path / "log.csv").write_text(log)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"t.onnx", "t.data", "log.csv"} == set(before)
    bench = ("bench", str(made / "t.subbyte"), "--iterations", "1")
    for arguments in (
        ("compile", "t.onnx", "-o", "t.data"),
        (*bench, "--meter", "csv:log.csv", "--json", "log.csv"),
        (
            *bench,
            "--baseline",
            "onnxruntime",
            "--onnx",
            str(made / "t.onnx"),
            "--float-model",
            "t.onnx",
            "--json",
            "t.data",
        ),
    ):
        done = subprocess.run([*SUBBYTE, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: {arguments[-2].replace('-o', 'output')} {arguments[-1]}: that is a file")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- disks and folders ----


@pytest.mark.parametrize("arguments", [["formats"], ["train", "mlp", "--out", "r"], ["doctor"]], ids=" ".join)
def test_a_current_folder_that_was_deleted_is_one_error(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = call(*arguments, shell=f'cd "{tmp_path}/gone" && rmdir "{tmp_path}/gone" && exec "$@"')
    assert done.stderr == "error: the current folder was deleted; change to one that is there (cd), and run again\n"
    assert done.returncode == 2


WRITERS = {
    "train": ["train", "mlp", "--out", "{}/run", "--epochs", "1", "--quiet"],
    "export": ["export", "t", "-o", "{}/y.onnx"],
    "compile": ["compile", "t.onnx", "-o", "{}/y.subbyte"],
    "run": ["run", "t.subbyte", "--input", "x.npy", "--output", "{}/y.npy"],
    "bench": ["bench", "t.subbyte", "--iterations", "1", "--json", "{}/y.json"],
}


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ("mount -t tmpfs -o ro none {0}", "the disk is read-only; name another place"),
        (
            "mount -t tmpfs -o size=16k none {0} && (dd if=/dev/zero of={0}/z bs=4k count=9 2>/dev/null; true)",
            "the disk is full; free some space, or name another place",
        ),
    ],
    ids=["read-only", "full"],
)
def test_a_disk_that_cannot_be_written_is_one_error_before_the_work(
    made: Path, tmp_path: Path, command: str, mount: str, words: str
) -> None:
    arguments = [part.format(tmp_path) for part in WRITERS[command]]
    inside = with_mount(mount.format(tmp_path), *SUBBYTE, *arguments)
    done = subprocess.run(inside, cwd=made, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith(f": {words}\n")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""  # bench prints what it measured


def test_a_disk_that_fills_up_in_training_is_one_error(tmp_path: Path) -> None:
    command = [*SUBBYTE, "train", "mlp", "--scheme", "float", "--epochs", "1", "--quiet", "--out", f"{tmp_path}/run"]
    shell = '"$@"; echo $?; ls -A ' + f"{tmp_path}/run"
    inside = with_mount(f"mount -t tmpfs -o size=64k none {tmp_path}", "sh", "-c", shell, "sh", *command)
    done = subprocess.run(inside, capture_output=True, text=True)
    assert done.stderr.startswith(f"error: cannot write '{tmp_path}/run/")
    assert done.stderr.endswith(": the disk is full; free some space, or name another place\n")
    assert done.stderr.count("\n") == 1
    assert done.stdout == "1\nlog.csv\n"


def test_a_full_folder_of_temporary_files_is_one_error(made: Path, tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=64k none {tmp_path}"
    inside = with_mount(mount, *SUBBYTE, "compile", "t.onnx", "-o", "y.subbyte")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(inside, cwd=made, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "has 65,536 bytes free" in done.stderr
    assert "set TMPDIR" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (made / "y.subbyte").exists()


@pytest.mark.parametrize("group", [False, True], ids=["the process", "its group"])
@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (signal.SIGINT, 128 + signal.SIGINT, "Ended by SIGINT."),
        (signal.SIGTERM, 128 + signal.SIGTERM, "Ended by SIGTERM."),
        (signal.SIGHUP, 128 + signal.SIGHUP, "Ended by SIGHUP."),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_an_interrupt_in_a_compilation_leaves_the_old_bundle_and_nothing_else(
    made: Path, tmp_path: Path, number: signal.Signals, status: int, words: str, group: bool
) -> None:
    """Ctrl-C of a terminal reaches the whole group, the child that replays the golden run, too."""
    output, temporary = tmp_path / "out", tmp_path / "tmp"
    for folder in (output, temporary):
        folder.mkdir()
    (output / "y.subbyte").write_bytes(b"old")
    process = subprocess.Popen(
        [*SUBBYTE, "compile", "t.onnx", "-o", str(output / "y.subbyte")],
        cwd=made,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell's background jobs ignore SIGINT
    )
    # in a folder of ours: `tempfile` itself tries the place with a file that no handler can take back
    while process.poll() is None and not any(
        files for place, _, files in os.walk(temporary) if place != str(temporary)
    ):
        time.sleep(0.001)
    (os.killpg if group else os.kill)(process.pid, number)
    _, said = process.communicate()
    assert process.returncode == status, said
    assert words in said
    assert "Traceback" not in said
    assert os.listdir(output) == ["y.subbyte"]
    assert (output / "y.subbyte").read_bytes() == b"old"
    assert os.listdir(temporary) == []


@pytest.mark.parametrize(
    ("limit", "arguments", "words"),
    [
        ("ulimit -v 300000", ["export", "t", "-o", "{}/y.onnx"], "`subbyte export` takes more memory than there is"),
        ("ulimit -f 8", ["run", "t.subbyte", "--input", "x.npy"], "larger than a file may be here (ulimit -f"),
        *(
            (f"ulimit -f {size}", ["compile", "t.onnx", "-o", "{}/y.subbyte"], "larger than a file may be here (ulimit")
            for size in (16, 40, 100)  # what LLVM, the archiver and the linker want is more
        ),
    ],
    ids=["memory", "size of files", "of LLVM's", "of the archiver's", "of the linker's"],
)
def test_a_limit_of_the_process_is_named(
    made: Path, tmp_path: Path, limit: str, arguments: list[str], words: str
) -> None:
    arguments = [part.format(tmp_path) for part in arguments]
    command = ["sh", "-c", f'{limit}; exec "$@"', "sh", *SUBBYTE, *arguments]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_message_has_a_length_to_read(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 4)) for name in "xy"]
    graph = helper.make_graph([helper.make_node("n" * 1_000_000, ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    done = call("inspect", str(tmp_path / "m.onnx"))
    assert done.returncode == 1
    assert len(done.stderr) < 5000
    assert done.stderr.endswith("model-local function\n")


INTERRUPT = """import os, signal, sys
signal.signal(signal.SIGINT, {handler})
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
from subbyte.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("subbyte.cli", ""),
        ("click", ""),
        ("subbyte.runtime.printable", ""),
        ("subbyte.cli.termination", ""),
        ("subbyte.cli.formats", "Ended by SIGINT.\n"),  # the command begins with the import of its file
        ("subbyte.formats", "Ended by SIGINT.\n"),
        ("subbyte.formats.levels", "Ended by SIGINT.\n"),
    ],
)
def test_an_interrupt_at_any_moment_ends_without_a_traceback(module: str, said: str) -> None:
    """Sent when a module is about to be imported. A shell shows 130 for an end by the signal, too."""
    code = INTERRUPT.format(handler="signal.default_int_handler", module=module)
    command = [sys.executable, "-c", code, "formats"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", said)
    assert done.returncode == (128 + signal.SIGINT if said else -signal.SIGINT)


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    """As in a script's background job."""
    code = INTERRUPT.format(handler="signal.SIG_IGN", module="click")
    done = subprocess.run([sys.executable, "-c", code, "formats"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ternary" in done.stdout


def test_the_script_is_the_one_that_the_tests_run() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '\n[project.scripts]\nsubbyte = "subbyte.__main__:main"\n' in project


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    code = """
import os, signal
from subbyte.cli.termination import cleaned_up_on_termination
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with cleaned_up_on_termination():
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "goes on False\nTrue\n"), done.stderr
