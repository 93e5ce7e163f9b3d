"""Run a bundle on this machine: a thin view of the C core, without copies where the caller's arrays allow it."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

import numpy as np
import numpy.typing as npt

from subbyte.errors import InputError, SessionError, UsageError
from subbyte.runtime import host, native
from subbyte.runtime.bundle import LIBRARY, WEIGHTS, Bundle, open_bundle
from subbyte.runtime.golden import GoldenReport, golden_report, golden_runs
from subbyte.runtime.manifest import Manifest, TensorInfo
from subbyte.runtime.state import State

if TYPE_CHECKING:
    from subbyte.runtime.machine import Machine
    from subbyte.runtime.measurement import OperatorTime

Array = npt.NDArray[Any]
Arrays = Array | Mapping[str, Array] | Sequence[Array]

MAX_THREADS = 256  # SUBBYTE_MAX_THREADS
CACHE_LINE = 64


def load(path: str | os.PathLike[str], threads: int | None = None) -> Session:
    """A session for the bundle at `path` on `threads` threads (default: every physical core this process may use).

    Raises UsageError without such a file, BundleError for a bundle that is damaged or for another machine, SessionError
    when memory, threads or descriptors run out. Close the session, or use it as a context manager, to release all it
    holds.
    """
    if threads is None:
        threads = min(host.usable_cores(), MAX_THREADS)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads is {threads!r}, expected a number in 1 .. {MAX_THREADS}")
    bundle = open_bundle(path, hold_weights=True)
    try:
        with bundle.naming():
            host.check_target(bundle.manifest.target)
        return Session(bundle, threads)
    except BaseException:
        bundle.close()
        raise


class _Process:
    """The process: another object in a forked child. Comparing it is cheaper than asking for the process's number."""


_process = _Process()


def _forked() -> None:
    global _process
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Session:
    """A loaded model. One run at a time in a session; several sessions run at once, on any threads.

    A run while another is under way waits for it; of a model with `state` it raises SessionError, because which of the
    two comes first would decide what both give.

    Made by `load`. Signal handlers, and what watches a run, may run and close the session in the middle of a run: a run
    inside of a run has memory of its own, and one that began before `close` ends with its numbers. A session belongs to
    the process that made it: after a fork, load again.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.bundle = bundle
        self.manifest: Manifest = bundle.manifest
        self.threads = threads
        self.inputs: tuple[TensorInfo, ...] = self.manifest.inputs
        self.outputs: tuple[TensorInfo, ...] = self.manifest.outputs
        self._dtypes = {name: np.dtype(name) for name in native.DTYPES}
        self._lock = threading.RLock()  # a signal handler may come back on the thread that holds it
        self._closed = False
        self._process = _process
        self._handle: ctypes.c_void_p | None = ctypes.c_void_p()
        self._free: ctypes.c_void_p | None = self._handle  # what the next run takes; None in the middle of a run
        self._library: native.Library | None = None
        self._weights: memoryview | None = None
        self._weights_address = 0
        if WEIGHTS in bundle.members and self.manifest.weights_bytes:
            self._weights = bundle.weights()
            self._weights_address = np.frombuffer(self._weights, np.uint8).ctypes.data
        try:
            content = bundle.read(LIBRARY)
            with bundle.naming():
                self._library = native.Library(content, self.manifest)
            self._library.create(self._handle, self._weights_address, threads)
        except BaseException:
            self.close()
            raise

    @property
    def state(self) -> State:
        """What lives between runs, by name, to read and assign; empty for most models."""
        return State(self.manifest.states, self._between_runs)

    @property
    def path(self) -> Path:
        """Where the bundle was opened."""
        return self.bundle.path

    # ---- running ----

    def run(self, inputs: Arrays, *, check_finite: bool = True) -> Array | dict[str, Array]:
        """One inference: the output array, or a dict by name where the model has several outputs.

        `inputs` is an array (one input), a list in the model's order, or a dict by name, of exactly the model's shapes
        and dtypes; contiguous arrays are read in place. Raises InputError for anything else, for indices that are out
        of range where the model uses them, and for NaN or infinity unless `check_finite` is false; SessionError after
        close; BundleError where the file of mapped weights was overwritten (those over bundle.MAX_HELD_BYTES).
        """
        outputs = self.empty_outputs()
        self._bound(self._checked_inputs(inputs, check_finite), outputs)()
        if len(outputs) == 1:
            return outputs[0]
        return {info.name: array for info, array in zip(self.outputs, outputs, strict=True)}

    def run_into(self, inputs: Arrays, outputs: Arrays, *, check_finite: bool = True) -> None:
        """One inference written straight into the caller's `outputs`: array, list or dict, as for `run`.

        Outputs must be contiguous, writeable, of the model's shapes and dtypes, and must not overlap each other or an
        input; raises InputError otherwise.
        """
        self.bind(inputs, outputs, check_finite=check_finite)()

    def bind(self, inputs: Arrays, outputs: Arrays, *, check_finite: bool = True) -> Callable[[], None]:
        """A call that runs on these very arrays, checked once: for loops that refill `inputs` in place.

        Contiguous inputs are read anew at every call, others are copied here. Raises as `run_into`.
        """
        arrays = self._checked_inputs(inputs, check_finite)
        results = self._arranged(outputs, self.outputs, "output")
        for index, (info, array) in enumerate(zip(self.outputs, results, strict=True)):
            self._check_kind(info, array, "output")
            if not (array.flags.c_contiguous and array.flags.writeable and array.flags.aligned):
                raise InputError(
                    f"output '{info.name}' must be contiguous, aligned and writeable: make it with np.empty"
                )
            for other in (*arrays, *results[:index]):
                if np.may_share_memory(array, other):
                    raise InputError(
                        f"output '{info.name}' overlaps another array of this call: give it memory of its own"
                    )
        return self._bound(arrays, results)

    def empty_outputs(self) -> list[Array]:
        """New arrays for `run_into`, in the model's order, which start at a cache line: vectors are stored whole."""
        return [_at_a_cache_line(info.shape, self._dtypes[info.dtype]) for info in self.outputs]

    def random_inputs(self, seed: int = 0) -> list[Array]:
        """Inputs to measure with: standard normal for floats, all values of the type for 8-bit integers, else 0."""
        generator = np.random.default_rng(seed)
        arrays: list[Array] = []
        for info in self.inputs:
            dtype = self._dtypes[info.dtype]
            if dtype.kind == "f":
                arrays.append(generator.standard_normal(info.shape, np.float32).astype(dtype))
            elif dtype.itemsize == 1:
                limits = np.iinfo(dtype)
                arrays.append(generator.integers(limits.min, limits.max, info.shape, dtype, endpoint=True))
            else:
                arrays.append(np.zeros(info.shape, dtype))
        return arrays

    def trace(self, inputs: Arrays, *, check_finite: bool = True) -> dict[str, Array]:
        """One inference, and the result of every operator by the name of its ONNX value, in the order they were made.

        Codes are returned as int32 levels, bits as int32 -1 / +1, NHWC tensors as NCHW: equal to the ONNX values. Of
        two results with one name, the later one is returned.
        """
        found: dict[str, Array] = {}
        self.watch(inputs, lambda _, results: found.update(results), check_finite=check_finite)
        return found

    def watch(
        self, inputs: Arrays, look: Callable[[int, dict[str, Array]], object], *, check_finite: bool = True
    ) -> list[Array]:
        """One inference; `look` gets the number and the results of every operator, as `trace` has them, once it ran.

        Returns the outputs. A result in scratch memory cannot be read afterwards and is omitted.
        """
        from subbyte.runtime.tracing import read_output

        arrays = self._checked_inputs(inputs, check_finite)
        outputs = self.empty_outputs()
        library = self._native()

        def read(session: int, index: int, _ns: int) -> None:
            arena = library.arena(session) or 0
            values = {o.tensor: read_output(o, arena, arrays, outputs) for o in self.manifest.operators[index].outputs}
            look(index, {name: value for name, value in values.items() if value is not None})

        self._hooked(arrays, outputs, read)
        return outputs

    def reset(self) -> None:
        """Give `state` its initial values, for a new sequence; raises SessionError in the middle of a run."""
        if not self.manifest.states:
            self._native()
            return
        with self._between_runs():
            library, handle = self._native(), self._handle
            assert handle is not None  # of a session that is not closed
            status = library.reset(handle)
            if status:
                raise library.failed(handle, status)

    def profile(
        self, inputs: Arrays | None = None, iterations: int = 10, *, check_finite: bool = True
    ) -> tuple[OperatorTime, ...]:
        """Nanoseconds of each operator over `iterations` runs; `inputs` default to `random_inputs()`.

        The clock is read between operators, so a run under the profiler is a little slower than one without. `state` is
        afterwards as it was. Raises BundleError for a bundle of subbyte 0.1.
        """
        from subbyte.runtime.measurement import MAX_SAMPLES, OPERATORS, OperatorTime

        if not 1 <= iterations <= MAX_SAMPLES:
            raise UsageError(f"iterations is {iterations}, expected 1 .. {MAX_SAMPLES}")
        arrays = self._checked_inputs(self.random_inputs() if inputs is None else inputs, check_finite)
        with self.state.kept():
            found = self.measure(arrays, OPERATORS, iterations=iterations)
        return tuple(OperatorTime(**row) for row in found["operators"])

    def measure(self, inputs: Arrays, what: int, **limits: Any) -> dict[str, Any]:
        """What `runtime.measurement.measure` finds, from the initial state on. Raises as `run` and `profile`."""
        from subbyte.runtime.measurement import measure

        arrays, outputs = self._checked_inputs(inputs, False), self.empty_outputs()
        with self.bundle.naming():
            functions = self._native().measure()
        return measure(functions, lambda run: self._bound(arrays, outputs, run=run)(), what, **limits)

    def machine(self) -> tuple[Machine, list[str]]:
        """What figures of this session are measured on, and what disturbs them. Raises BundleError as `profile`."""
        from subbyte.runtime.machine import described

        with self.bundle.naming():
            return described(self._native().machine(), self.threads)

    def check_golden(self) -> GoldenReport:
        """Run the golden inputs and compare with the golden outputs; raises BundleError when the bundle has none.

        Of a model with state: several runs from the initial state on; `state` is afterwards as it was.
        """
        made: list[list[Array]] = []
        with self.state.kept():
            self.reset()
            for inputs in golden_runs(self.bundle):
                made.append(self.empty_outputs())
                self.run_into(inputs, made[-1], check_finite=False)
            return golden_report(self.bundle, made, list(self.state.values()))

    # ---- life ----

    def close(self) -> None:
        """Release the C session, its threads, the library and the weights; waits for a run that is under way.

        In the middle of a run on this very thread (from a signal handler, or from what watches the run) no further run
        begins, and all is released when that run ends.
        """
        if self._process is not _process:  # a forked child: the threads, and perhaps the lock's holder, are not here
            self._library = None
            return
        self._closed = True
        with self._lock:
            if self._free is self._handle:
                self._release()

    def _release(self) -> None:
        """What `close` does; a signal handler may come back here, so each part is taken before it is released."""
        library, self._library = self._library, None
        if library is not None:
            handle, self._handle, self._free = self._handle, None, None
            if handle is not None:
                library.destroy(handle)
            library.close()
        weights, self._weights = self._weights, None
        if weights is not None:
            weights.release()
        self.bundle.close()

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed or self._library is None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_library", None) is not None:
            self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # A copy would free the same C session a second time.
        raise SessionError(
            f"the session of '{self.manifest.name}' cannot be copied or pickled: give its path, '{self.path}', to the "
            f"thread or process that needs it, and load the bundle there"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.threads} threads"
        return f"Session('{self.manifest.name}', target '{self.manifest.target.name}', {state})"

    # ---- inside ----

    def _native(self) -> native.Library:
        if self._closed or self._library is None:
            raise SessionError(f"the session of '{self.manifest.name}' is closed: load the bundle again")
        if self._process is not _process:
            raise SessionError(
                f"the session of '{self.manifest.name}' was made in another process, and a fork does not copy its "
                f"threads: load the bundle in this process"
            )
        return self._library

    def _hooked(self, inputs: Sequence[Array], outputs: Sequence[Array], hook: Callable[[int, int, int], None]) -> None:
        """One inference; `hook` gets the C session that runs, the number of each operator and its nanoseconds."""
        failures: list[BaseException] = []
        called: list[int] = []

        def call(session: int, index: int, ns: int) -> None:
            try:
                called.append(index)
                if not failures:
                    hook(session, index, ns)
            except BaseException as error:  # ctypes would print it and go on
                failures.append(error)

        self._bound(inputs, outputs, native.HOOK(call))()
        if failures:
            raise failures[0]
        if len(called) < len(self.manifest.operators):
            raise SessionError(
                f"a signal handler raised an exception while an operator of '{self.manifest.name}' was watched; ctypes "
                f"printed it and did not pass it on. Run again"
            )

    def _bound(
        self,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        hook: Any = native.NO_HOOK,
        run: Callable[..., int] | None = None,
    ) -> Callable[[], None]:
        """A call of the C session on these arrays, which it keeps alive; `run` is called as the library's own is."""
        input_pointers = (ctypes.c_void_p * max(1, len(inputs)))(*[array.ctypes.data for array in inputs])
        output_pointers = (ctypes.c_void_p * max(1, len(outputs)))(*[array.ctypes.data for array in outputs])

        first, second = ctypes.addressof(input_pointers), ctypes.addressof(output_pointers)
        library, lock = self._native(), self._lock
        run = library.run if run is None else run
        hooked, has_state = hook is not native.NO_HOOK, bool(self.manifest.states)
        check_weights = None if self._weights is None or self.bundle.holds_weights else self.bundle.check_weights

        def call(_alive: object = (inputs, outputs, hook, input_pointers, output_pointers)) -> None:
            if self._process is not _process:  # before the lock: in a forked child nobody may be left to release it
                self._native()
            if has_state and self._free is None:
                raise self._busy()
            with lock:  # between any two lines a signal handler may run or close this session, or raise
                session, self._free = self._free, None
                try:
                    if check_weights is not None:
                        check_weights()
                    if session is None:
                        return self._run_apart(run, first, second, hook)
                    status = run(session, first, second, hook, session if hooked else None)
                    if status:
                        raise library.failed(session, status)
                finally:
                    if session is not None:
                        self._free = session
                        if self._closed and session is self._handle:
                            self._release()

        return call

    def _run_apart(self, run: Callable[..., int], inputs: int, outputs: int, hook: Any) -> None:
        """A run within a run of this thread: on a C session of its own, for the arena of the outer one is in use."""
        if self.manifest.states:
            raise self._busy()
        library, session = self._native(), ctypes.c_void_p()
        try:
            library.create(session, self._weights_address, 1)
            status = run(session, inputs, outputs, hook, session)
            if status:
                raise library.failed(session, status)
        finally:
            library.destroy(session)

    def _busy(self) -> SessionError:
        return SessionError(
            f"a run of '{self.manifest.name}' is under way, and the next one reads the state that it leaves: run one "
            "after the other, or load the bundle again for another sequence"
        )

    @contextmanager
    def _between_runs(self) -> Iterator[Callable[[int], int]]:
        """Gives the address of a state by its index, while no run begins; raises SessionError if one is under way."""
        library = self._native()
        if self._free is None:
            raise self._busy()
        with self._lock:
            if self._free is None:
                raise self._busy()
            self._native()
            yield lambda index: library.state(self._handle, index)

    def _checked_inputs(self, given: Arrays, check_finite: bool) -> list[Array]:
        self._native()
        arrays = self._arranged(given, self.inputs, "input")
        for index, (info, array) in enumerate(zip(self.inputs, arrays, strict=True)):
            self._check_kind(info, array, "input")
            if not (array.flags.c_contiguous and array.flags.aligned):
                array = np.require(array, requirements=("C", "A"))
                arrays[index] = array
            if check_finite and array.dtype.kind == "f" and not np.isfinite(array).all():
                where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
                raise InputError(
                    f"input '{info.name}' holds {array[where]} at {list(where)}: quantized layers have no code for it. "
                    f"Correct the data, or pass check_finite=False"
                )
        return arrays

    def _arranged(self, given: Arrays, infos: tuple[TensorInfo, ...], side: str) -> list[Array]:
        """The arrays in the model's order."""
        names = [info.name for info in infos]
        if isinstance(given, Mapping):
            for name in given:
                if name not in names:
                    import difflib  # here: whoever makes no mistake does not wait for it

                    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
                    hint = f" Did you mean '{near[0]}'?" if near else ""
                    raise InputError(f"the model has no {side} '{name}'.{hint} It has: {', '.join(names)}.")
            for name in names:
                if name not in given:
                    raise InputError(f"{side} '{name}' is missing: the model needs {', '.join(names)}")
            values: list[Any] = [given[name] for name in names]
        elif isinstance(given, (list, tuple)):
            if len(given) != len(infos):
                raise InputError(f"got {len(given)} {side}s, expected {len(infos)}: {', '.join(names)}, as arrays")
            values = list(given)
        elif len(infos) == 1:
            values = [given]
        else:
            raise InputError(
                f"the model has {len(infos)} {side}s ({', '.join(names)}): give a list or a dict of arrays"
            )
        if side == "output" and not all(isinstance(value, np.ndarray) for value in values):
            raise InputError("outputs must be NumPy arrays: make them with empty_outputs()")
        return [_as_array(value, info, side) for value, info in zip(values, infos, strict=True)]

    def _check_kind(self, info: TensorInfo, array: Array, side: str) -> None:
        if array.dtype == self._dtypes[info.dtype] and array.shape == info.shape:
            return
        advice = f"use .astype(np.{info.dtype})" if array.dtype != self._dtypes[info.dtype] else "the shapes are fixed"
        if array.shape == info.shape[1:] and info.shape[0] == 1:
            advice = "add the batch axis with x[None]"
        got = f"{array.dtype} {list(array.shape)}"
        raise InputError(f"{side} '{info.name}' is {got}, expected {info.dtype} {list(info.shape)}: {advice}")


def _as_array(value: Any, info: TensorInfo, side: str) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:  # whatever the __array__ of a foreign type raises
        raise InputError(f"{side} '{info.name}' is a {type(value).__name__} that is not an array: {error}") from error


def _at_a_cache_line(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised array whose address is a multiple of 64; NumPy's own are of 16, large ones never of 64."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory: Array = np.empty(nbytes + CACHE_LINE - 1, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + nbytes].view(dtype).reshape(shape)
