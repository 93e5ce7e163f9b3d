"""Series, tokens and images in; logits of an input, a position, a pixel or a token out: from torch to the bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import subbyte
from subbyte.dialect.example_inputs import example_inputs
from subbyte.errors import InputError, UsageError
from subbyte.export import ExportReport, export, run_onnx
from subbyte.judge.check import check
from subbyte.judge.verdict import compare, prepare
from subbyte.models import Config, load_checkpoint, save_checkpoint, untrained

# What is exported: model, scheme, options. Convolutions alone are exact: no float sum depends on an order.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "series": ("conv1d", "int8", {"channels": 3, "size": 12, "width": 8, "depth": 1}),
    "positions": ("conv1d", "ternary", {"channels": 3, "size": 12, "width": 8, "depth": 1, "per_position": True}),
    "pixels": ("unet", "int8", {"size": 8, "width": 4, "depth": 1}),
    "tokens": ("decoder", "ternary", {"size": 6, "width": 16, "depth": 1}),
}
VOCABULARY = 11
Made = tuple[ExportReport, nn.Module, torch.Tensor]


def made(kind: str) -> tuple[nn.Module, torch.Tensor]:
    name, scheme, options = KINDS[kind]
    return untrained(name, scheme, classes=VOCABULARY, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The export of each kind, made once, with its model and the inputs that it was compared on."""
    found: dict[str, Made] = {}

    def get(kind: str) -> Made:
        if kind not in found:
            model, inputs = made(kind)
            path = tmp_path_factory.mktemp(kind) / "m.onnx"
            found[kind] = export(model, path, example=inputs, inputs=inputs), model, inputs
        return found[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_exports_as_torch_computes_it(exported: Callable[[str], Made], kind: str) -> None:
    report, _, inputs = exported(kind)
    found = report.verification
    assert found is not None
    assert found.samples == len(inputs)
    assert report.input_dtype == ("int64" if kind == "tokens" else "float32")
    assert found.exact or kind == "tokens"
    assert found.max_error <= 1e-3 * found.largest_output


@pytest.mark.parametrize("kind", ["pixels", "tokens"])
def test_every_kind_compiles_to_what_the_file_computes(exported: Callable[[str], Made], kind: str) -> None:
    report, model, inputs = exported(kind)
    path = report.path.with_suffix(".subbyte")
    compiled = subbyte.compile(report.path, path)
    assert compiled.not_replayed is None
    with subbyte.load(path, threads=1) as session, torch.no_grad():
        for one in inputs.split(1):
            got = session.run(one.numpy())
            wanted = run_onnx(report.path, one.numpy())["logits"]
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, wanted, atol=0 if kind != "tokens" else 1e-3 * np.abs(wanted).max())
            np.testing.assert_allclose(got, model(one).numpy(), atol=1e-3 * np.abs(wanted).max())
        if kind == "tokens":
            refuses_what_is_no_token(session, inputs[:1].numpy())
    assert subbyte.bench(path, seconds=0.01, energy=False, cold=False).golden_ok
    assert [one.score for one in compare(prepare(path), seconds=0.01).contenders] == [None] * 3


def refuses_what_is_no_token(session: subbyte.Session, good: np.ndarray[Any, Any]) -> None:
    """An index outside of the vocabulary is refused by name, and the session goes on."""
    before = session.run(good)
    for wrong in (VOCABULARY, -VOCABULARY - 1, 2**40):
        tokens = good.copy()
        tokens[0, 2] = wrong
        with pytest.raises(InputError, match=f"index {wrong}, element 2 of its indices, is out of range"):
            session.run(tokens)
    with pytest.raises(InputError, match="float32"):
        session.run(good.astype(np.float32))
    np.testing.assert_array_equal(session.run(good), before)


def test_example_inputs_index_what_the_model_looks_up(exported: Callable[[str], Made]) -> None:
    report, _, _ = exported("tokens")
    (tokens,) = example_inputs(subbyte.export.load_onnx(report.path), samples=200).values()
    assert tokens.dtype == np.int64
    assert tokens.shape == (200, 6)
    assert set(np.unique(tokens)) == set(range(VOCABULARY))


def test_a_checkpoint_of_tokens_is_loaded_exported_and_checked(tmp_path: Path) -> None:
    model, _ = made("tokens")
    name, scheme, options = KINDS["tokens"]
    own = {key: value for key, value in options.items() if key != "size"}
    config = Config(name, scheme, (6,), VOCABULARY, own, input_dtype="int64", task="language-modelling")
    loaded = load_checkpoint(save_checkpoint(tmp_path / "run", model, config))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.model.parameters(), strict=True))
    report = export(loaded, tmp_path / "m.onnx")
    assert report.input_dtype == "int64"
    assert report.checked_on == "random inputs"
    found = check(loaded, report.path, limit=9)
    assert found.samples == 9
    assert not found.diverged


def test_inputs_of_another_kind_are_refused_at_export(tmp_path: Path) -> None:
    model, inputs = made("tokens")
    with pytest.raises(UsageError, match="inputs are float32, the model takes int64"):
        export(model, tmp_path / "m.onnx", example=inputs, inputs=inputs.float())
    with pytest.raises(UsageError, match=r"must be a batch of float32, int64, .* got float64 \(8, 6\)"):
        export(model, tmp_path / "m.onnx", example=inputs.double())
