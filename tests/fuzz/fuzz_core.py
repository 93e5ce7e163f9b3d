"""The C core under sanitizers: core_fuzz.c makes models, buffers and runs of random bytes, and walks each plan too."""

from __future__ import annotations

import contextlib
import resource
import shutil
import struct
import subprocess
from pathlib import Path

from corruption import Rng
from kinds import TESTS, Fault

from subbyte.tvm_kernels.emit.core import CORE, core_folder

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class Program:
    """The built program, one process for all cases; another after one that ended."""

    def __init__(self, folder: Path, sanitizers: tuple[str, ...], core: Path | None = None) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        assert compiler, "the fuzzer of the C core needs a C compiler"
        self.path, self.errors = folder / "core_fuzz", folder / "errors"
        core = core or core_folder()
        sources = [TESTS / "fuzz" / "core_fuzz.c", *(core / name for name in CORE)]
        options = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", *sanitizers, f"-I{core}"]
        subprocess.run([compiler, *options, *sources, "-lpthread", "-o", self.path], check=True)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self.errors, "wb") as errors:
            return subprocess.Popen(
                [self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, preexec_fn=_all_memory
            )

    def close(self) -> int:
        """Ends the process; its exit status."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()
        return self.process.returncode

    def __del__(self) -> None:
        if hasattr(self, "process"):
            self.close()

    def answer(self, case: bytes) -> str:
        """What it says of one case; raises Fault where it ends instead, with the first line that tells why."""
        given, said = self.process.stdin, self.process.stdout
        assert given is not None
        assert said is not None
        with contextlib.suppress(BrokenPipeError):
            given.write(struct.pack("=I", len(case)) + case)
            given.flush()
        line = said.readline().decode().strip()
        if line:
            return line
        status = self.close()
        errors = [text for text in self.errors.read_text(errors="replace").splitlines() if text.strip(" =")]
        self.process = self._start()
        raise Fault(f"exit status {status}: {errors[0] if errors else 'not a word'}")


def _all_memory() -> None:
    """Sanitizers map terabytes, so the limit of the cases is not for them."""
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def prepare(folder: Path) -> Program:
    """Builds the program."""
    return Program(folder, SANITIZERS)


def case(state: Program, rng: Rng, folder: Path) -> str:
    """Random bytes, of which the program makes a model: it ran and was right, or its fault was refused."""
    given = rng.bytes(int(rng.integers(0, 600)))
    (folder / "given").write_bytes(given)
    return {"ran": "right"}.get(word := state.answer(given), word)
