"""A short run of every fuzzer, other cases each day; `make fuzz` goes on with the long one. What its runner sees."""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path

import numpy as np
import onnx
import pieces
import pytest
from engines import Case, equal, judged
from faulty_cases import FAULTY
from kinds import KINDS, Fault, Kind, find_neighbours
from one_node import draw, operators

from subbyte.errors import InputError, SubbyteError

find_neighbours()

SHORT = {  # cases of each kind
    **{"bundle": 500, "npy": 1000, "images": 400, "meters": 500, "checkpoint": 150, "inspect": 150},
    **{"compile": 10, "nodes": 25, "core": 500, "pool": 300},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_drawn_file_is_read_right_or_refused(name: str, sample: int) -> None:
    piece = pieces.run_piece(KINDS[name], 1 + sample, 0, SHORT[name])  # sample 0 is the long run's
    assert piece.faults == []
    assert piece.words.total() == SHORT[name]
    assert piece.words["read"] + piece.words["right"] > 0
    assert piece.words["refused"] > 0 or SHORT[name] < 100


@pytest.mark.parametrize("name", ["bundle", "npy", "images", "meters", "checkpoint", "inspect", "core"])
def test_a_case_is_always_the_same(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(KINDS[name].module)
    state = module.prepare(tmp_path)
    for index in range(5):
        made = []
        for turn in ("first", "second"):
            folder = tmp_path / f"{turn}{index}"
            folder.mkdir()
            with contextlib.suppress(SubbyteError, UserWarning):
                module.case(state, pieces.generator(KINDS[name], 7, index), folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            made.append([(path.relative_to(folder), path.read_bytes()) for path in files])
        assert made[0] == made[1] != []


def test_a_graph_is_always_the_same() -> None:
    first, second = (draw(pieces.generator(KINDS["nodes"], 3, 5), operators()) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.model == second.model
    assert all(np.array_equal(array, second.inputs[name]) for name, array in first.inputs.items())
    from fuzz_compile import network

    made = [network(pieces.generator(KINDS["compile"], 3, 5)) for _ in range(2)]
    assert made[0] == made[1]


# ---- the runner ----


def test_every_way_to_fail_is_seen_and_the_next_cases_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pieces, "RESULTS", tmp_path / "fuzz.json")
    monkeypatch.setattr(pieces, "KINDS", {"faulty": FAULTY})
    assert pieces.main(["--seconds", "-1"]) == 0  # no piece is begun
    assert pieces.main([]) == 1
    (piece,) = pieces.load_saved()["faulty"]["pieces"]
    assert [fault[:2] for fault in piece["faults"]] == [
        *[[1, "untyped"], [2, "left behind"], [3, "left behind"], [4, "wrong"], [5, "crash"], [6, "hang"]],
        *[[7, "untyped"], [8, "untyped"]],
    ]
    lines = {case: line for case, _, line in piece["faults"]}
    assert "KeyError: 'oops' (faulty_cases.py:" in lines[1]
    assert lines[2] == "beside"
    assert lines[5] == "SIGSEGV"
    assert "MemoryError" in lines[7]
    assert "RuntimeWarning" in lines[8]
    assert sum(piece["words"].values()) == 10
    assert piece["words"]["refused"] + piece["words"].get("right or refused", 0) == 2
    assert "case 5: crash: SIGSEGV" in capsys.readouterr().out


def test_a_piece_is_saved_once_and_run_again_after_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "RESULTS", tmp_path / "fuzz.json")
    kind = Kind("bundle", "fuzz_bundle", "", 30, 10)
    good = pieces.Piece(0, 10, 10)
    good.words.update({"read": 10})
    bad = pieces.Piece(0, 0, 10)
    bad.words.update({"wrong": 10})
    bad.faults = [(3, "wrong", "so")]
    for piece in (good, bad, bad):
        pieces.save(kind, piece)
    assert pieces.missing(kind, 0) == [0, 20]
    assert pieces.missing(kind, 1) == [0, 10, 20]
    assert [row["first"] for row in json.loads(pieces.RESULTS.read_text())["bundle"]["pieces"]] == [0, 10]
    bad.faults = []
    pieces.save(kind, bad)
    assert pieces.missing(kind, 0) == [20]


def test_a_fault_of_the_c_core_is_seen_and_the_next_case_runs(tmp_path: Path) -> None:
    """A case of several threads, where the threads share one workspace: built from a core with that one line wrong."""
    import fuzz_core

    core = fuzz_core.core_folder()
    for name in (*fuzz_core.CORE, *(path.name for path in core.glob("*.h"))):
        text = (core / name).read_text()
        broken = text.replace("mine.workspace = job->session->workspaces + ", "mine.workspace = job->session->arena + ")
        assert (broken != text) is (name == "session.c")
        (tmp_path / name).write_text(broken)
    program = fuzz_core.Program(tmp_path, fuzz_core.SANITIZERS, core=tmp_path)
    faults, words = [], []
    for index in range(60):
        try:
            words.append(fuzz_core.case(program, pieces.generator(KINDS["core"], 0, index), tmp_path))
        except Fault as error:
            faults.append(str(error))
    assert len(faults) >= 3
    assert all("core_fuzz.c" in fault or "AddressSanitizer" in fault for fault in faults)  # as the threads meet
    assert len(words) >= 3


# ---- comparing with other engines ----


def test_what_is_wrong_is_found() -> None:
    one = np.float32([1.0, np.nan, np.inf])
    assert equal(one, one.copy(), half=False)
    assert not equal(one, np.float32([1.001, np.nan, np.inf]), half=False)
    assert equal(one, np.float32([1.001, np.nan, np.inf]), half=False, tie=0.002)
    assert not equal(one, np.float32([1.0, 0.0, np.inf]), half=False)
    assert not equal(np.int8([1]), np.int8([2]), half=True)
    assert equal(np.int8([1]), np.int8([2]), half=False, tie=1.0)
    assert not equal(np.int8([1]), np.uint8([1]), half=False)
    assert not equal(one, one[:2], half=False)


@pytest.mark.parametrize(
    ("value", "other", "word"),
    [
        (3e38, [np.nan, 3e38], "overflows"),
        (3e38, [-np.inf, 3e38], "overflows"),
        (3e38, [np.nan, 2e38], ""),  # what is finite is wrong
        (1e38, [np.nan, 1e38], ""),  # nothing overflows
    ],
)
def test_only_a_sum_that_overflows_may_be_infinite_in_another_way(
    value: float, other: list[float], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,4] x) => (float[1,2] y)
        <float[4,2] w = {1,0, 1,0, 1,0, -1,1}> { y = MatMul(x, w) }"""
    case = Case(onnx.parser.parse_model(text), {"x": np.full((1, 4), value, np.float32)}, "sum")
    monkeypatch.setattr("engines.references", lambda case: [[np.float32([other])]])
    if word:
        assert judged(case, tmp_path) == word
        return
    with pytest.raises(Fault, match="sum"):
        judged(case, tmp_path)


def test_a_refused_run_is_no_fault_and_leaves_nothing(tmp_path: Path) -> None:
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    text = f"{head} g (float[2] x, int64[1] i) => (float[1] y) {{ y = Gather(x, i) }}"
    inputs = {"x": np.float32([1, -2]), "i": np.int64([1])}
    assert judged(Case(onnx.parser.parse_model(text), inputs, "Gather"), tmp_path) == "right"
    # the reference of golden outputs computes these, where a run by us refuses them
    text = f"{head} g (float[1,1,2,2] x, int64[1,1,2,2] i) => (float[1,1,4,4] y) {{ n = Neg(i) y = MaxUnpool \
<kernel_shape=[2,2], strides=[2,2]> (x, n) }}"
    inputs = {"x": np.ones((1, 1, 2, 2), np.float32), "i": np.ones((1, 1, 2, 2), np.int64)}
    with pytest.raises(InputError, match="out of range"):
        judged(Case(onnx.parser.parse_model(text), inputs, "MaxUnpool"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_result_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    case = Case(onnx.parser.parse_model(text), {"x": np.float32([1, -2])}, "Neg")
    assert judged(case, tmp_path) == "right"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("engines.references", lambda case: [[case.inputs["x"]]])
    with pytest.raises(Fault, match=r"Neg: .*-1\.0, 2\.0.* for .*1\.0, -2\.0"):
        judged(case, tmp_path)
