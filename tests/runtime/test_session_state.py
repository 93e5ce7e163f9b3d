"""The state of a session: read, assigned, reset; refused while a run is under way; of its own in every session."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

import subbyte
from subbyte.errors import BundleError, InputError, SessionError
from subbyte.runtime import manifest as manifests
from subbyte.runtime.bundle import open_bundle
from subbyte.runtime.session import Session

# y = x + h; h' = h + x, k' = k + 1, of which k is int32 and begins with 5
TEXT = """<ir_version: 10, opset_import: ["" : 21], metadata_props: ["subbyte.state": "h=h_next\nk=k_next"]>
sums (float[1, 3] x, float[1, 3] h, int32[1] k) => (float[1, 3] y, float[1, 3] h_next, int32[1] k_next) {
  [y] y = Add(x, h)
  [h] h_next = Add(h, x)
  [k] k_next = Add(k, one)
}"""
X = np.array([[1, 2, 3]], np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = onnx.parser.parse_model(TEXT)
    for name, value in (("one", 1), ("k", 5)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.int32), name))
    path = tmp_path_factory.mktemp("state") / "sums.subbyte"
    subbyte.compile(model, path)
    return path


@pytest.fixture(params=[1, 2])
def session(bundle: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    with subbyte.load(bundle, threads=request.param) as loaded:
        yield loaded


def run(session: Session, times: int = 1) -> np.ndarray:
    for _ in range(times):
        made = session.run(X)
    assert isinstance(made, np.ndarray)
    return made


def test_a_run_reads_what_the_run_before_left(session: Session) -> None:
    for count in range(1, 8):
        np.testing.assert_array_equal(run(session), count * X)
        np.testing.assert_array_equal(session.state["h"], count * X)
        assert session.state["k"] == [5 + count]
    session.reset()
    np.testing.assert_array_equal(run(session), X)


def test_state_is_a_mapping_of_copies(session: Session) -> None:
    state = session.state
    assert (list(state), len(state), "h" in state, "x" in state) == (["h", "k"], 2, True, False)
    copy = state["h"]
    copy += 10
    np.testing.assert_array_equal(state["h"], np.zeros((1, 3)))
    given = np.full((1, 3), 7, np.float32)
    state["h"] = given
    given += 1
    np.testing.assert_array_equal(run(session), X + 7)
    later = {name: value.tolist() for name, value in state.items()}
    assert later == {"h": [[8.0, 9.0, 10.0]], "k": [6]}
    state["h"] = np.asfortranarray(np.ones((3, 1), np.float32)).T  # another order in memory
    np.testing.assert_array_equal(state["h"], np.ones((1, 3)))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("hh", X, "no state 'hh'. Did you mean 'h'"),
        ("h", X[0], r"float32 \[3\], expected float32 \[1, 3\]: assign an array of this dtype and shape"),
        ("h", X.astype(np.float64), r"float64 \[1, 3\], expected float32 \[1, 3\]"),
        ("h", X * np.nan, "NaN or infinity"),
        ("h", [[1], [1, 2]], "given a list that is not an array: .*inhomogeneous"),
        (["h"], X, r"no state '\['h'\]'"),
        ("k", np.array([1], np.int64), r"int64 \[1\], expected int32 \[1\]"),
    ],
)
def test_values_that_do_not_fit_are_refused_and_change_nothing(
    session: Session, name: str, value: np.ndarray, reason: str
) -> None:
    run(session)
    with pytest.raises(InputError, match=reason):
        session.state[name] = value
    np.testing.assert_array_equal(session.state["h"], X)
    assert session.state["k"] == [6]


def test_states_are_neither_inputs_nor_outputs(session: Session) -> None:
    with pytest.raises(InputError, match="the model has no input 'h'"):
        session.run({"x": X, "h": X})
    call = session.bind(X, [out := np.empty((1, 3), np.float32)])
    for count in range(1, 4):
        call()
        np.testing.assert_array_equal(out, count * X)


def test_two_sessions_have_states_of_their_own(bundle: Path) -> None:
    with subbyte.load(bundle, threads=1) as one, subbyte.load(bundle, threads=1) as other:
        run(one, 3)
        run(other)
        np.testing.assert_array_equal(one.state["h"], 3 * X)
        np.testing.assert_array_equal(other.state["h"], X)


def test_checks_and_profiles_restore_the_state_and_a_trace_is_a_run(session: Session) -> None:
    run(session, 2)
    session.state["h"] = 100 * X
    assert session.check_golden().exact
    assert [row.name for row in session.check_golden().outputs] == ["y", "h", "k"]
    session.profile(iterations=3)
    np.testing.assert_array_equal(session.state["h"], 100 * X)
    assert session.state["k"] == [7]
    traced = session.trace(X)
    np.testing.assert_array_equal(traced["h_next"], 101 * X)
    np.testing.assert_array_equal(session.state["h"], 101 * X)


def test_a_second_run_of_a_state_is_refused_while_one_is_under_way(session: Session) -> None:
    """From another thread and from what watches the run; the first one ends with its numbers."""
    entered, go_on, refused = threading.Event(), threading.Event(), []

    def try_all() -> None:
        for act in (lambda: session.run(X), session.reset, lambda: session.state["h"], lambda: set_state(session)):
            with pytest.raises(SessionError, match="a run of 'sums' is under way"):
                act()
            refused.append(act)

    def look(index: int, _: object) -> None:
        if index == 0:
            try_all()
            entered.set()
            assert go_on.wait(60)

    made: list[np.ndarray] = []
    worker = threading.Thread(target=lambda: made.extend(session.watch(X, look)))
    worker.start()
    assert entered.wait(60)
    try_all()
    go_on.set()
    worker.join()
    assert len(refused) == 8
    np.testing.assert_array_equal(made[0], X)
    np.testing.assert_array_equal(session.state["h"], X)
    np.testing.assert_array_equal(run(session), 2 * X)


def set_state(session: Session) -> None:
    session.state["h"] = X


def test_threads_that_share_a_session_lose_no_run(session: Session) -> None:
    """Every run that was not refused counts once."""
    done, refused, start = [0] * 4, [0] * 4, threading.Barrier(4)

    def work(index: int) -> None:
        start.wait()
        for _ in range(200):
            try:
                session.run(X)
                done[index] += 1
            except SessionError:
                refused[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(done) > 0
    assert sum(done) + sum(refused) == 800
    np.testing.assert_array_equal(session.state["h"], sum(done) * X)
    assert session.state["k"] == [5 + sum(done)]


def test_the_core_refuses_a_run_within_a_run(bundle: Path) -> None:
    """What the lock of the Python session never lets happen: `subbyte_session_run` from the hook of a run."""
    with subbyte.load(bundle, threads=1) as session:
        library, handle = session._native(), session._handle
        assert library.run(handle, None, None, subbyte.runtime.native.NO_HOOK, None) == 1  # bad argument
        statuses = []

        def look(_: int, __: object) -> None:
            statuses.append(library.run(handle, None, None, subbyte.runtime.native.NO_HOOK, None))
            statuses.append(library.reset(handle))

        session.watch(X, look)
        assert statuses == [8] * 6  # SUBBYTE_BUSY, of each of the three operators
        assert "another run is under way" in str(library.failed(handle, 8))
        np.testing.assert_array_equal(run(session), 2 * X)


def test_a_closed_or_forked_session_says_so(bundle: Path) -> None:
    session = subbyte.load(bundle, threads=1)
    state = session.state
    child = os.fork()
    if child == 0:
        said = 1
        try:
            state["h"]
        except SessionError as error:
            said = 0 if "another process" in str(error) else 2
        os._exit(said)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    session.close()
    for act in (session.reset, lambda: state["h"], lambda: set_state(session)):
        with pytest.raises(SessionError, match="is closed"):
            act()


def test_a_model_without_state_has_an_empty_one(bundle_path: Path) -> None:
    with subbyte.load(bundle_path, threads=1) as session:
        assert dict(session.state) == {}
        session.reset()
        with pytest.raises(InputError, match="no state 'h'"):
            session.state["h"] = X


# ---- the manifest ----


def read(bundle: Path) -> dict:
    with open_bundle(bundle) as opened:
        return dict(opened.raw)


def test_the_manifest_says_what_lives_between_runs(bundle: Path) -> None:
    raw = read(bundle)
    assert raw["states"] == [
        {"name": "h", "dtype": "float32", "shape": [1, 3], "output": "h_next"},
        {"name": "k", "dtype": "int32", "shape": [1], "output": "k_next"},
    ]
    assert raw["state_bytes"] == 64 + 64 + 4
    assert raw["golden"] == {"ties": [0.0, 0.0, 0.0], "runs": 4}
    old = {key: value for key, value in raw.items() if key not in ("states", "state_bytes", "golden")}
    found = manifests.from_dict(old)
    assert (found.states, found.state_bytes, found.golden_runs, found.golden_ties) == ((), 0, 1, (0.0,))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("states", [{"name": "x", "dtype": "float32", "shape": [1, 3], "output": "n"}]),
        ("states", {"h": "h_next"}),
        ("states", []),
        ("state_bytes", 128),
        ("state_bytes", None),
        ("golden", {"ties": [0.0, 0.0, 0.0]}),
        ("golden", {"ties": [0.0, 0.0, 0.0], "runs": 0}),
        ("golden", {"ties": [0.0], "runs": 4}),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(bundle: Path, field: str, value: object) -> None:
    raw = read(bundle)
    manifests.from_dict(raw)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        manifests.from_dict({**raw, field: value})


def test_a_manifest_of_other_states_is_not_that_of_the_library(bundle: Path, tmp_path: Path) -> None:
    with open_bundle(bundle) as opened:
        raw = {key: value for key, value in opened.raw.items() if key != "members"}
        members = {name: opened.read(name) for name in opened.manifest.members if "golden" not in name}
    raw["states"][0]["name"] = "other"
    path = subbyte.runtime.write_bundle(tmp_path / "other.subbyte", raw, members)
    with pytest.raises(BundleError, match=r"is not the one that manifest\.json describes: state 0"):
        subbyte.load(path)
