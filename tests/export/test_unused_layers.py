"""Layers that see nothing but zeros, that nothing uses, that never run or that have two names; and refused exports."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from subbyte.cli import main
from subbyte.errors import ExportError, ExportWarning, QuantizationError
from subbyte.export import export, onnx_codes, run_onnx
from subbyte.export.verify import verify
from subbyte.models.checkpoint import Config, save_checkpoint
from subbyte.models.quant import get_scheme, quantize, quantized_layers
from subbyte.models.quant.first_batch import not_starting
from subbyte.models.quant.observe import observe
from subbyte.models.zoo import create

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Linear layers by name, and a forward that is given."""

    def __init__(self, forward, *names):
        super().__init__()
        torch.manual_seed(0)
        for name in names:
            self.add_module(name, nn.Linear(6, 6))
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


def made(forward, *names, scheme="ternary", example=X):
    model = quantize(Net(forward, *names), get_scheme(scheme, keep=None), example=example)
    model.train()(X)
    return model.eval()


def exported(tmp_path, model, warning=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error" if warning is None else "ignore")
        report = export(model, tmp_path / "m.onnx", example=X[:1], inputs=X, **options)
    if warning is not None:
        assert warning in "\n".join(report.notes)
        assert all(note in str(report) for note in report.notes)
    else:
        assert report.notes == ()
    if report.verification is not None:
        assert report.verification.exact
    return report, onnx.load(tmp_path / "m.onnx")


# ---- an export leaves the model alone ----


@pytest.mark.parametrize("scheme", ["int8", "binary"])
def test_a_refused_export_starts_no_quantizer(tmp_path, scheme):
    model = quantize(Net(lambda s, x: s.b(torch.relu(s.a(x))), "a", "b"), get_scheme(scheme, keep=None), example=X)
    untouched = copy.deepcopy(model)
    with pytest.raises(QuantizationError, match="layer 'a' has seen no data; run a batch"):
        export(model, tmp_path / "m.onnx", example=X[:1])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), untouched.buffers(), strict=True))
    for one in (model, untouched):
        one.eval()(X)
    assert torch.equal(model(X), untouched(X))


def test_the_check_of_an_export_starts_no_quantizer(tmp_path):
    model = quantize(Net(lambda s, x: s.a(x), "a"), "int8", example=X).eval()
    model(torch.zeros(2, 6))
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(ExportWarning, match="'a' has only ever seen zeros"):
        report = export(model, tmp_path / "m.onnx", example=X[:1])  # checked on random inputs
    assert report.verification.exact
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- layers that the file cannot have, or that were never trained ----


def test_a_layer_that_has_only_seen_zeros_has_its_default_step(tmp_path):
    model = made(lambda s, x: s.a(x) + s.dead(torch.relu(x - 100)), "a", "dead")
    _, file = exported(tmp_path, model, "'dead' has only ever seen zeros: its input is quantized with the default step")
    assert len(onnx_codes(file)) == 2
    inputs = np.full((1, 6), 103, np.float32)  # now the dead layer sees 3, code 3 at step 1
    values = run_onnx(file, inputs, onnx_codes(file))
    assert np.array_equal(values["/dead/Quantize_output_0"], np.full((1, 6), 3))
    assert np.array_equal(values["logits"], model_output(model, inputs))


def test_a_checkpoint_remembers_that_a_layer_has_only_seen_zeros(tmp_path):
    model = quantize(create("mlp", channels=1, size=8, hidden=(4, 4)), "int8", example=torch.zeros(1, 1, 8, 8))
    with torch.no_grad():
        quantized_layers(model)["1"].bias.fill_(-100.0)  # so that the layer behind its ReLU sees zeros
    model(torch.rand(4, 1, 8, 8))
    save_checkpoint(tmp_path / "run", model, Config("mlp", "int8", (1, 8, 8), 10, {"hidden": [4, 4]}))
    result = CliRunner().invoke(main, ["export", str(tmp_path / "run"), "-o", str(tmp_path / "m.onnx")])
    assert result.exit_code == 0, result.output
    assert result.output.count("has only ever seen zeros") == 1
    assert "bit-equal to torch" in result.output


def model_output(model, inputs):
    with torch.no_grad(), not_starting():
        return model(torch.from_numpy(inputs)).numpy()


def test_a_layer_whose_output_nothing_uses_is_told(tmp_path):
    def forward(s, x):
        return {"hidden": s.a(x), "pooled": torch.tanh(s.pooler(s.a(x)))}

    model = made(lambda s, x: s.b(forward(s, x)["hidden"]), "a", "b", "pooler")
    _, file = exported(tmp_path, model, "the output of 'pooler' is unused: it is not in the file")
    assert not [node.name for node in file.graph.node if "pooler" in node.name]


def test_a_call_that_nothing_uses_does_not_shift_those_after_it(tmp_path):
    def forward(s, x):
        s.a(x * 3)
        return s.a(torch.relu(s.a(x)))

    report, _ = exported(tmp_path, made(forward, "a"))
    assert len(report.verification.codes) == 2


def test_a_layer_that_runs_in_training_alone_is_told(tmp_path):
    model = made(lambda s, x: s.a(x) + s.aux(x) if s.training else s.a(x), "a", "aux", example=None)
    exported(tmp_path, model, "'aux' is quantized, but the forward does not execute it in eval mode")
    never = made(lambda s, x: s.a(x), "a", "never", example=None)
    exported(tmp_path, never, "'never' is quantized, but the forward does not execute it in eval mode")


def test_a_layer_whose_input_is_a_constant_is_exported(tmp_path):
    class Queries(Net):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.query = nn.Parameter(torch.randn(3, 6))

    model = Queries(lambda s, x: s.b(x) + s.a(s.query).sum(dim=0), "a", "b")
    model = quantize(model, get_scheme("ternary", keep=None), example=X)
    model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = export(model.eval(), tmp_path / "m.onnx", example=X[:1], inputs=X)
    assert report.verification.max_error <= 1e-5 * report.verification.largest_output


def test_a_file_without_a_quantizer_that_torch_uses_is_refused(tmp_path):
    model = made(lambda s, x: s.a(x) + 0 * s.b(x * 2), "a", "b")
    _, file = exported(tmp_path, model)
    nodes = [node for node in file.graph.node if not node.name.startswith("/b/")]
    (total,) = [node for node in nodes if node.op_type == "Add" and not node.name.startswith("/a/")]
    total.op_type = "Identity"
    del total.input[1]
    kept = [node for node in nodes if node.name != "/Mul" and not node.name.startswith("/Mul_")]
    del file.graph.node[:]
    file.graph.node.extend(kept)
    with pytest.raises(ExportError, match="torch quantizes the input of 'b', but the file does not"):
        verify(file, model, X.numpy())


# ---- shared layers ----


class Shared(nn.Module):
    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.second = self.first
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.second(torch.relu(s.first(x)) * 6),
        lambda s, x: s.first(torch.relu(s.second(x)) * 6),
        lambda s, x: s.first(x) + s.second(x) + s.first(2 * x),
        lambda s, x: s.second(x) + s.first(2 * x) + s.second(3 * x) + s.first(x),
    ],
)
def test_a_layer_with_two_names_is_compared_at_every_call(tmp_path, forward):
    model = quantize(Shared(forward), get_scheme("int8", keep=None), example=X)
    assert [(row.layer, row.note) for row in model.quantization_report] == [
        ("first", ""),
        ("second", "the same layer as 'first'"),
    ]
    model(X)
    report, file = exported(tmp_path, model.eval())
    assert len(report.verification.codes) == len(onnx_codes(file)) >= 2
    packed = [tensor for tensor in file.graph.initializer if tensor.name.endswith("weight_packed")]
    assert len(packed) == 1
    loaded = quantize(Shared(forward), get_scheme("int8", keep=None), example=X)
    state = model.state_dict()
    assert {name.partition(".")[0] for name in state} == {"first", "second"}
    loaded.load_state_dict(state, strict=True)
    assert torch.equal(loaded.eval()(X), model(X))


# ---- what an output depends on ----


def test_use_is_followed_through_operators_views_and_writes():
    def forward(s, x):
        a, b, c, d = s.a(x), s.b(2 * x), s.c(3 * x), s.d(4 * x)
        total = torch.zeros_like(x)
        total.add_(a)
        total = torch.cat([total, torch.split(b, 3, dim=1)[0]], dim=1)
        c.mul_(d)
        return {"total": total, "shape": torch.full((1,), float(c.shape[0]))}

    model = made(forward, "a", "b", "c", "d")
    with torch.no_grad():
        _, calls = observe(model, lambda: model(X))
    assert {call.layer: call.used for call in calls} == {"a": True, "b": True, "c": False, "d": False}
