"""The state of a session: values that live between runs, to read and to write between them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import InputError
from subbyte.runtime.manifest import StateInfo

Array = npt.NDArray[Any]
# Of a session: no run begins meanwhile; gives the address of a state by its index.
BetweenRuns = Callable[[], AbstractContextManager[Callable[[int], int]]]


class State(Mapping[str, Array]):
    """Values by the names of the inputs that they are in the ONNX file; reading and assigning copies.

        h = session.state["h"]          # float32 [1, 64], say
        session.state["h"] = h

    Raises InputError for an unknown name, another dtype or shape, NaN and infinity; SessionError in the middle of a
    run, which has the value to itself, and after close.
    """

    def __init__(self, infos: Sequence[StateInfo], between_runs: BetweenRuns) -> None:
        self._infos = {info.name: info for info in infos}
        self._between_runs = between_runs

    def __getitem__(self, name: str) -> Array:
        info = self._info(name)
        with self._between_runs() as address:
            held = ctypes.string_at(address(self._index(info)), info.nbytes)
        value: Array = np.frombuffer(held, info.dtype).reshape(info.shape).copy()
        return value

    def __setitem__(self, name: str, value: Array) -> None:
        info = self._info(name)
        try:
            array = np.asarray(value)
        except Exception as error:  # whatever the __array__ of a foreign type raises
            got = type(value).__name__
            raise InputError(f"state '{name}' is given a {got} that is not an array: {error}") from error
        if array.dtype != np.dtype(info.dtype) or array.shape != info.shape:
            got, want = f"{array.dtype} {list(array.shape)}", f"{info.dtype} {list(info.shape)}"
            raise InputError(f"state '{name}' is given {got}, expected {want}: assign an array of this dtype and shape")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"state '{name}' is given NaN or infinity, which every later run would read: correct it")
        self._write(info, array)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __len__(self) -> int:
        return len(self._infos)

    def __repr__(self) -> str:
        return f"State({', '.join(f'{i.name}: {i.dtype} {list(i.shape)}' for i in self._infos.values())})"

    def _info(self, name: str) -> StateInfo:
        if isinstance(name, str) and name in self._infos:
            return self._infos[name]
        import difflib  # here: whoever makes no mistake does not wait for it

        near = difflib.get_close_matches(str(name), list(self._infos), n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise InputError(f"the model has no state '{name}'.{hint} It has: {', '.join(self._infos) or 'none'}.")

    def _write(self, info: StateInfo, array: Array) -> None:
        held = array.tobytes()
        with self._between_runs() as address:
            ctypes.memmove(address(self._index(info)), held, len(held))

    def _index(self, info: StateInfo) -> int:
        return list(self._infos).index(info.name)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore every value at the end."""
        before = {name: self[name] for name in self}
        try:
            yield
        finally:
            for name, value in before.items():
                self._write(self._infos[name], value)  # unchecked: a run may have left an infinity
