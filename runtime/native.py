"""A bundle's library in this process: runtime/c/subbyte.h seen through ctypes."""

from __future__ import annotations

import _ctypes
import ctypes
import itertools
import os
import struct
from collections.abc import Callable
from typing import Any

from subbyte.errors import BundleError, InputError, SessionError, SubbyteError
from subbyte.files.output import what_to_do
from subbyte.runtime.bundle import raise_if_exhausted
from subbyte.runtime.manifest import MODEL_DTYPES, Manifest

ABI, OLDEST_ABI = 5, 4  # a library of version 4 is one of version 5 without state
NO_MEMORY, LACKS_FEATURES, BAD_INDEX, BUSY, STOPPED = 3, 6, 7, 8, 10  # SUBBYTE_NO_MEMORY ..
DTYPES = tuple(MODEL_DTYPES)  # SUBBYTE_FLOAT32 ..
_REBUILD = "Build the bundle again with `subbyte compile`."


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("nbytes", ctypes.c_size_t),
    ]


class _Operator(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("argument_count", ctypes.c_int32),
        ("tiles", ctypes.c_int32),
    ]


class _Failure(ctypes.Structure):
    _fields_ = [
        ("status", ctypes.c_int32),
        ("operator_index", ctypes.c_int32),
        ("position", ctypes.c_int64),
        ("value", ctypes.c_int64),
        ("lowest", ctypes.c_int64),
        ("highest", ctypes.c_int64),
    ]


class _State(ctypes.Structure):
    _fields_ = [
        ("tensor", ctypes.POINTER(_Tensor)),
        ("offset", ctypes.c_uint32),
        ("initial", ctypes.c_uint32),
        ("next", ctypes.c_uint32),
    ]


class _States(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int32),
        ("states", ctypes.POINTER(_State)),
        ("bytes", ctypes.c_size_t),
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("target", ctypes.c_char_p),
        ("input_count", ctypes.c_int32),
        ("output_count", ctypes.c_int32),
        ("operator_count", ctypes.c_int32),
        ("inputs", ctypes.POINTER(_Tensor)),
        ("outputs", ctypes.POINTER(_Tensor)),
        ("operators", ctypes.POINTER(_Operator)),
        ("arena_bytes", ctypes.c_size_t),
        ("workspace_bytes", ctypes.c_size_t),
        ("weights_bytes", ctypes.c_size_t),
        ("needs", ctypes.c_uint32),
        ("features", ctypes.c_char_p),
        ("states", ctypes.POINTER(_States)),  # from version 5 on
    ]


HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64)
NO_HOOK = HOOK(0)
TICK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class MeasureOptions(ctypes.Structure):
    """subbyte_measure_options."""

    _fields_ = [
        ("iterations", ctypes.c_int64),
        ("seconds", ctypes.c_double),
        ("warmup", ctypes.c_int64),
        ("tick", TICK),
        ("user", ctypes.c_void_p),
        ("go_on", ctypes.c_int32),
        ("what", ctypes.c_int32),
    ]


_ELF_SHARED = 3


MeasureFunctions = tuple[Any, Any]  # subbyte_measure or subbyte_machine, subbyte_free


class Library:
    """A loaded library; `close` unloads it. Raises BundleError when it is not what the manifest describes."""

    def __init__(self, data: bytes, manifest: Manifest) -> None:
        _check_elf(data, manifest.target.triple)
        self._release: Callable[[], None] = lambda: None
        self._dll: Any = None
        self._dll, self._release = _load(data)
        try:
            get_model = self._function("subbyte_get_model", ctypes.POINTER(_Model), [])
            self._create = self._function(
                "subbyte_session_create",
                ctypes.c_int32,
                [
                    ctypes.c_void_p,
                    ctypes.c_void_p,
                    ctypes.c_size_t,
                    ctypes.c_int32,
                    ctypes.POINTER(ctypes.c_void_p),
                ],
            )
            self.run = self._function(
                "subbyte_session_run",
                ctypes.c_int32,
                [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, HOOK, ctypes.c_void_p],
            )
            self.arena = self._function("subbyte_session_arena", ctypes.c_void_p, [ctypes.c_void_p])
            self.destroy = self._function("subbyte_session_destroy", None, [ctypes.c_void_p])
            failure, words = ctypes.POINTER(_Failure), [ctypes.c_char_p, ctypes.c_size_t]
            self._failure = self._function("subbyte_session_failure", failure, [ctypes.c_void_p])
            self._failure_text = self._function(
                "subbyte_failure_text", ctypes.c_size_t, [ctypes.POINTER(_Model), failure, *words]
            )
            self._missing_features = self._function(
                "subbyte_missing_features", ctypes.c_size_t, [ctypes.POINTER(_Model), *words]
            )
            self._status_text = self._function("subbyte_status_text", ctypes.c_char_p, [ctypes.c_int32])
            self.model = get_model()
            _check_model(self.model.contents, manifest)
            if manifest.states:
                self.reset = self._function("subbyte_session_reset", ctypes.c_int32, [ctypes.c_void_p])
                which = [ctypes.c_void_p, ctypes.c_int32]
                self.state = self._function("subbyte_session_state", ctypes.c_void_p, which)
        except BaseException:
            self.close()
            raise

    def _function(self, name: str, result: Any, arguments: list[Any]) -> Any:
        try:
            function = getattr(self._dll, name)
        except AttributeError as error:
            raise BundleError(f"the library does not export {name}. {_REBUILD}") from error
        function.restype, function.argtypes = result, arguments
        return function

    def measure(self) -> MeasureFunctions:
        """Raises BundleError for a library of subbyte 0.1, which has no such functions."""
        given = [ctypes.c_void_p] * 3
        measure = self._function(
            "subbyte_measure",
            ctypes.c_int32,
            [*given, ctypes.POINTER(MeasureOptions), ctypes.POINTER(ctypes.c_void_p)],
        )
        return measure, self._function("subbyte_free", None, [ctypes.c_void_p])

    def machine(self) -> MeasureFunctions:
        """The same, of what describes this machine."""
        given = [ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)]
        ask = self._function("subbyte_machine", ctypes.c_int32, given)
        return ask, self._function("subbyte_free", None, [ctypes.c_void_p])

    def create(self, session: ctypes.c_void_p, weights: int, threads: int) -> None:
        """Make a C session over the weights at that address, for `destroy`; raises SessionError.

        It is written into `session`, which the caller holds already: workers of one that was lost on its way, to an
        exception of a signal handler, would outlive the library.
        """
        model = self.model.contents
        at, made = ctypes.cast(self.model, ctypes.c_void_p), ctypes.byref(session)
        status = self._create(at, weights, model.weights_bytes, threads, made)
        if status:
            text = _text(self._status_text(status)) or "no reason given"
            if status == NO_MEMORY:
                text += ". Free memory, raise the limit of processes (ulimit -u), or load with fewer threads"
            if status == LACKS_FEATURES:
                names = ctypes.create_string_buffer(1024)
                self._missing_features(self.model, names, len(names))
                text = f"this CPU lacks {_text(names.value)}. Compile the model again for it: `--target host`"
            raise SessionError(
                f"making a session of '{_text(model.name)}' with {threads} threads failed: {text} (status {status})"
            )

    def failed(self, session: ctypes.c_void_p, status: int) -> SubbyteError:
        """What to raise for a run that returned `status`: InputError for an index out of range, else SessionError."""
        if status == BUSY:  # which a failure is not written for: that of another run may be
            return SessionError(f"'{_text(self.model.contents.name)}': {_text(self._status_text(status))}")
        failure = self._failure(session)
        text = ctypes.create_string_buffer(1 + self._failure_text(self.model, failure, None, 0))
        self._failure_text(self.model, failure, text, len(text))
        reason = f"running '{_text(self.model.contents.name)}' failed: {_text(text.value)}"
        return InputError(reason) if status == BAD_INDEX else SessionError(f"{reason} (status {status})")

    def close(self) -> None:
        """Unload the library; nothing of it may be used after this."""
        if self._dll is not None:
            handle, self._dll = self._dll._handle, None
            _ctypes.dlclose(handle)
            self._release()


def _check_elf(data: bytes, triple: str) -> None:
    """Raise BundleError unless `data` starts as a shared ELF library for the processor that runs this process.

    `triple` is the one of a target that `host.check_target` lets run here.
    """
    if len(data) < 64 or data[:4] != b"\x7fELF":
        raise BundleError(f"library.so is not an ELF library. {_REBUILD}")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != _ELF_SHARED or machine != _own_elf_machine(machine):
        raise BundleError(
            f"library.so is ELF type {kind} for machine {machine}, expected a library for {triple}. {_REBUILD}"
        )


def _own_elf_machine(otherwise: int) -> int:
    """ELF's number of this process's processor, which its own program has; `otherwise` where that cannot be read."""
    try:
        with open("/proc/self/exe", "rb") as program:
            head = program.read(20)
    except OSError:
        return otherwise
    return int(struct.unpack_from("<H", head, 18)[0]) if head[:4] == b"\x7fELF" and len(head) == 20 else otherwise


# ---- loading ----

_count = itertools.count(1)


def _load(data: bytes) -> tuple[ctypes.CDLL, Callable[[], None]]:
    """The library, and what to call once it is unloaded; from memory where the system can, else a private file."""
    failed: list[OSError] = []
    for way in (_from_memory, _from_file):
        try:
            return way(data)
        except OSError as error:
            raise_if_exhausted(error)
            failed.append(error)
    reasons = "; ".join(dict.fromkeys(map(str, failed)))
    known = next(filter(None, map(what_to_do, failed)), None)  # of this machine: another bundle would fail alike
    raise BundleError(f"the library cannot be loaded here: {reasons}{f': {known}' if known else f'. {_REBUILD}'}")


def _from_memory(data: bytes) -> tuple[ctypes.CDLL, Callable[[], None]]:
    if not hasattr(os, "memfd_create"):
        raise OSError("no memfd on this system")
    fd = os.memfd_create("subbyte-library", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        # The loader takes a path that it knows for the library it knows, even when the descriptor's number has been
        # given to another file since. So every path is spelled differently: the count in slashes and dots.
        spelling = bin(next(_count))[2:].replace("1", "./").replace("0", "/")
        try:
            dll = ctypes.CDLL(f"/proc/self/fd/{spelling}{fd}")
        except OSError:
            os.close(os.dup(fd))  # without descriptors: an error with a number, which the loader's own has not
            raise
    except BaseException:
        os.close(fd)
        raise
    return dll, lambda: os.close(fd)


def _from_file(data: bytes) -> tuple[ctypes.CDLL, Callable[[], None]]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="subbyte-") as folder:  # 0700, and gone once the library is mapped
        path = os.path.join(folder, f"library-{next(_count)}.so")
        with open(path, "wb") as file:
            file.write(data)
        return ctypes.CDLL(path), lambda: None


# ---- is it the library that the manifest describes? ----


def _check_model(model: Any, manifest: Manifest) -> None:
    if not OLDEST_ABI <= model.abi <= ABI:
        raise BundleError(
            f"the library has version {model.abi} of subbyte.h, this runtime reads {OLDEST_ABI} to {ABI}. {_REBUILD}"
        )
    table = model.states.contents if model.abi == ABI and model.states else _States()
    said: dict[str, object] = {
        "arena_bytes": manifest.arena_bytes,
        "workspace_bytes": manifest.workspace_bytes,
        "weights_bytes": manifest.weights_bytes,
        "input_count": len(manifest.inputs),
        "output_count": len(manifest.outputs),
        "operator_count": len(manifest.operators),
    }
    for field, value in said.items():
        if getattr(model, field) != value:
            raise _disagrees(field, getattr(model, field), value)
    if (table.count, table.bytes) != (len(manifest.states), manifest.state_bytes):
        raise _disagrees(
            "state", f"{table.count} of {table.bytes} bytes", f"{len(manifest.states)} of {manifest.state_bytes}"
        )
    for side, infos, tensors in (
        ("input", manifest.inputs, model.inputs),
        ("output", manifest.outputs, model.outputs),
        ("state", manifest.states, [table.states[index].tensor.contents for index in range(table.count)]),
    ):
        for index, info in enumerate(infos):
            tensor = tensors[index]
            dtype = DTYPES[tensor.dtype] if 0 <= tensor.dtype < len(DTYPES) else f"dtype {tensor.dtype}"
            shape = tuple(tensor.shape[: tensor.rank]) if tensor.rank == len(info.shape) else f"rank {tensor.rank}"
            found = (_text(tensor.name), dtype, shape, tensor.nbytes)
            if found != (info.name, info.dtype, info.shape, info.nbytes):
                raise _disagrees(f"{side} {index}", found, (info.name, info.dtype, info.shape, info.nbytes))
    for index, operator in enumerate(manifest.operators):
        name = _text(model.operators[index].name)
        if name != operator.name:
            raise _disagrees(f"operator {index}", name, operator.name)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _disagrees(what: str, found: object, said: object) -> BundleError:
    return BundleError(
        f"the library is not the one that manifest.json describes: {what} is {found}, not {said}. {_REBUILD}"
    )
