"""Errors cross from a worker to its parent as they were raised."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from subbyte.errors import CompileError, MissingDependencyError, SubbyteError, UnknownNameError

OF_THEIR_OWN: dict[type[SubbyteError], tuple[object, ...]] = {
    UnknownNameError: ("target", "hots", ["host", "cortex-m4"]),
    MissingDependencyError: ("torch", "train"),
}


def _kinds(of: type[SubbyteError] = SubbyteError) -> Iterator[type[SubbyteError]]:
    yield of
    for kind in of.__subclasses__():
        yield from _kinds(kind)


def _error(kind: type[SubbyteError]) -> SubbyteError:
    return kind(*OF_THEIR_OWN.get(kind, ("what is wrong, and what to do",)))


def _fail() -> None:
    raise _error(UnknownNameError)


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_every_error_is_made_again_as_it_was(again: Callable[[SubbyteError], SubbyteError]) -> None:
    for kind in _kinds():
        error = _error(kind)
        vars(error)["job"] = 7
        found = again(error)
        assert type(found) is kind
        assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))
    assert MissingDependencyError in _kinds()
    assert CompileError in _kinds()


def test_an_error_of_a_worker_reaches_its_parent() -> None:
    """A process pool that could not read an error was broken; `multiprocessing.Pool` waited for ever."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(UnknownNameError, match=r"unknown target 'hots'\. Did you mean 'host'"):
            pool.submit(_fail).result()
        assert pool.submit(abs, -1).result() == 1
