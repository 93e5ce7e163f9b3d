"""What a forward may return, under which names it is exported, and that every output of it is compared with torch."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from subbyte.errors import ExportError
from subbyte.export import export, run_onnx
from subbyte.export.outputs import named_outputs
from subbyte.export.verify import largest_error, torch_outputs
from subbyte.models.quant import primitives, quantize

A, B = torch.zeros(1, 2), torch.ones(3)
Pair = namedtuple("Pair", ["boxes", "scores"])
X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


class Returning(nn.Module):
    """Gives what `make(self, x, y)` makes of its input and of its one layer's output y."""

    def __init__(self, make):
        super().__init__()
        self.layer, self.make = nn.Linear(4, 4), make
        self.register_buffer("anchors", torch.arange(6.0).reshape(3, 2))

    def forward(self, x):
        return self.make(self, x, self.layer(x))


def exported(folder, make, scheme="int8", **options):
    """The model, the report of its export and the file."""
    torch.manual_seed(0)
    model = quantize(Returning(make), scheme, example=torch.randn(1, 4))
    if scheme != "float":
        model(torch.randn(8, 4))
    report = export(model.eval(), folder / "m.onnx", example=torch.zeros(1, 4), **options)
    return model, report, onnx.load(folder / "m.onnx")


# ---- names ----


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (A, ["logits"]),
        ((A,), ["logits"]),
        ([A], ["logits"]),
        ((A, B), ["output_0", "output_1"]),
        ([A, B, A], ["output_0", "output_1", "output_2"]),
        ({"z": A, "a": B}, ["z", "a"]),
        ({"boxes": A}, ["boxes"]),
        (OrderedDict(z=A, a=B), ["z", "a"]),
        ({1: A, 0: B}, ["1", "0"]),
        (Pair(A, B), ["boxes", "scores"]),
    ],
)
def test_names_are_those_of_the_forward_in_its_order(returned, names):
    assert list(named_outputs(returned)) == names


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, x, y: "logits", "of type str; expected a tensor, or a tuple"),
        (lambda s, x, y: None, "of type NoneType; expected a tensor"),
        (lambda s, x, y: {}, "empty dict; expected at least one tensor"),
        (lambda s, x, y: (y, None), "'output_1' of the model's forward is of type NoneType, expected a tensor"),
        (lambda s, x, y: {"logits": y, "loss": 3.0}, "'loss' of the model's forward is of type float"),
        (lambda s, x, y: {"levels": [y, y]}, r"'levels' .* is a list of 2, nested in a dict; .*'levels_0'"),
        (lambda s, x, y: (y, {"a": y}), "'output_1' .* is a dict of 1, nested in a tuple"),
        (lambda s, x, y: {1: y, "1": y}, "two outputs named '1'; rename"),
        (lambda s, x, y: {"input": y}, "'input', which is the name of the input; rename"),
        (lambda s, x, y: {"": y}, "the key '', expected printable text"),
        (lambda s, x, y: {"a\nb": y}, "expected printable text"),
        (lambda s, x, y: {("a", 1): y}, "expected printable text"),
        (lambda s, x, y: {"a": y, "none": y[:, :0]}, r"'none' .* is empty, of shape \[\d, 0\]; omit it"),
        (lambda s, x, y: (y, y) if primitives.is_exporting() else y, r"traced 2 outputs.* returns 1 \(logits\)"),
    ],
)
def test_what_is_not_named_tensors_is_refused(tmp_path, make, message):
    with pytest.raises(ExportError, match=message):
        exported(tmp_path, make)
    assert not list(tmp_path.iterdir())


def test_an_output_may_have_the_name_of_a_parameter(tmp_path):
    _, report, file = exported(
        tmp_path, lambda s, x, y: {"anchors": y * s.anchors[1, 1], "layer.bias": y + s.anchors.amax((0, 1))}
    )
    assert [output.name for output in file.graph.output] == ["anchors", "layer.bias"]
    assert report.verification.exact


# ---- the same numbers ----


def test_every_output_is_bit_equal_to_torch(tmp_path):
    model, report, file = exported(tmp_path, lambda s, x, y: {"z": y, "a": y.relu(), "best": y.argmax(-1)}, inputs=X)
    found = report.verification
    assert [(o.name, o.shape, o.max_error) for o in found.outputs] == [
        ("z", (1, 4), 0),
        ("a", (1, 4), 0),
        ("best", (1,), 0),
    ]
    assert found.exact
    assert "in all 3 outputs" in str(report)
    wanted, got = torch_outputs(model, X, file), run_onnx(file, X)
    assert list(got) == list(wanted) == ["z", "a", "best"]
    assert got["best"].dtype == np.int64
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name])


@pytest.mark.parametrize("scheme", ["float", "int8"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_difference_in_any_output_is_found_and_named(tmp_path, scheme, place):
    def make(s, x, y):
        outputs = {"first": y, "second": y.relu(), "third": y.abs()}
        name = list(outputs)[place]
        outputs[name] = outputs[name] + (0.5 if primitives.is_exporting() else 0)
        return outputs

    with pytest.raises(ExportError, match=f"'{('first', 'second', 'third')[place]}'"):
        exported(tmp_path, make, scheme)
    assert not list(tmp_path.iterdir())


def test_a_small_output_beside_a_large_one_has_its_own_tolerance(tmp_path):
    def make(s, x, y):
        return {"large": y * 1e6, "small": y.sigmoid() + (0.2 if primitives.is_exporting() else 0)}

    with pytest.raises(ExportError, match="output 'small' of the file differs"):
        exported(tmp_path, make)


def test_an_output_that_is_zero_but_for_rounding_may_differ_by_as_much(tmp_path):
    _, report, _ = exported(tmp_path, lambda self, x, y: {"p": y, "rest": torch.softmax(y, -1).sum(-1) - 1}, "float")
    rest = report.verification.outputs[1]
    assert rest.largest < 1e-6
    assert rest.error < 1e-6


def test_every_inexact_output_is_reported(tmp_path):
    _, report, _ = exported(tmp_path, lambda s, x, y: {"p": y.softmax(-1), "q": y}, inputs=X)
    assert report.verification.inexact
    assert "of 'p'" in str(report)
    assert "of 'q'" in str(report)


# ---- any shape ----


def test_outputs_that_do_not_begin_with_the_batch_are_compared_in_its_slices(tmp_path):
    def make(s, x, y):
        return {
            "rows": y,
            "turned": y.T,
            "largest": y.amax((0, 1)),
            "shifted": s.anchors + y.amax((0, 1)),
            "tokens": y.reshape(-1, 2),
        }

    model, report, file = exported(tmp_path, make, batch=2, inputs=X)
    found = report.verification
    assert found.exact
    assert found.samples == 5
    assert [o.shape for o in found.outputs] == [(2, 4), (4, 2), (), (3, 2), (4, 2)]
    got = run_onnx(file, X)
    assert [array.shape for array in got.values()] == [(5, 4), (10, 2), (3,), (8, 2), (10, 2)]
    for name, array in torch_outputs(model, X, file).items():
        np.testing.assert_array_equal(got[name], array)
    np.testing.assert_array_equal(got["tokens"], got["rows"].reshape(-1, 2))
    assert run_onnx(file, X[:2])["largest"].shape == torch_outputs(model, X[:2], file)["largest"].shape == ()


@pytest.mark.parametrize(
    "other",
    [lambda y: y.amax(0, keepdim=True), lambda y: torch.arange(10.0).reshape(5, 2) + y.amax((0, 1))],
    ids=["over the batch, by chance of its size", "as long as the samples"],
)
def test_an_output_that_only_looks_as_if_it_began_with_the_batch(tmp_path, other):
    """One sample a slice, five in all: only slices tell what the file computes of each."""
    model, report, file = exported(tmp_path, lambda s, x, y: {"rows": y, "other": other(y)}, inputs=X)
    assert report.verification.exact
    got = run_onnx(file, X)["other"]
    assert len(got) == 5 * report.verification.outputs[1].shape[0]
    np.testing.assert_array_equal(got, torch_outputs(model, X, file)["other"])


def test_a_value_returned_twice_the_input_and_a_constant_are_outputs_too(tmp_path):
    make = lambda s, x, y: {"y": y, "again": y, "x": x, "anchors": s.anchors}  # noqa: E731
    _, report, file = exported(tmp_path, make, inputs=X)
    assert report.verification.exact
    assert [i.name for i in file.graph.input] == ["input"]
    got = run_onnx(file, X[:1])
    assert list(got) == ["y", "again", "x", "anchors"]
    np.testing.assert_array_equal(got["again"], got["y"])
    np.testing.assert_array_equal(got["x"], X[:1])
    np.testing.assert_array_equal(got["anchors"], np.arange(6).reshape(3, 2))


def test_the_largest_error_is_not_hidden_by_infinities():
    inf, nan = float("inf"), float("nan")
    assert largest_error(np.array([inf, 1.0]), np.array([inf, 1.5])) == 0.5
    assert largest_error(np.array([inf]), np.array([-inf])) == inf
    assert np.isnan(largest_error(np.array([nan, 0.0]), np.array([0.0, 0.0])))
    assert largest_error(np.zeros(0), np.zeros(0)) == 0
    assert largest_error(np.array([3], np.uint8), np.array([5], np.uint8)) == 2
