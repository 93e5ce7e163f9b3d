"""Exported files: the dialect's form, torch's numbers bit for bit, their size on disk, and what cannot be exported."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import subbyte
from subbyte.dialect.graph import view
from subbyte.errors import ExportError, UsageError
from subbyte.export import export, inspect, onnx_codes
from subbyte.formats import PerChannel
from subbyte.formats import get as get_format
from subbyte.models.checkpoint import Config, save_checkpoint
from subbyte.models.data import Normalization
from subbyte.models.quant import LearnedStep, Scheme, WeightQuantizer, get_scheme, primitives, quantize
from subbyte.models.zoo import create, create_for_scheme

QUANTIZED = ["int8", "int4", "ternary", "binary", "pow2"]
DECODER = {"int8": "Int8", "int4": "Int4", "ternary": "Ternary", "binary": "Binary", "pow2": "Pow2_4"}


def trained(name, scheme, shape=(1, 8, 8), sizes=None, **options):
    """A zoo model of that scheme that has seen a few batches, in eval mode."""
    torch.manual_seed(0)
    chosen = get_scheme(scheme, **options)
    model = create_for_scheme(name, scheme, channels=shape[0], size=shape[1:], **(sizes or {}))
    x = torch.randn(16, *shape)
    quantize(model, chosen, example=x[:1])
    for _ in range(3):
        model(x)
    return model.eval()


def export_small(tmp_path, model, shape=(1, 8, 8), **options):
    report = export(model, tmp_path / "m.onnx", example=torch.zeros(1, *shape), **options)
    return report, onnx.load(tmp_path / "m.onnx")


@pytest.fixture(scope="module")
def resnet8(tmp_path_factory):
    """resnet8 of a scheme, exported once for all tests of this file: (report, model)."""
    made = {}

    def get(scheme):
        if scheme not in made:
            inputs = np.random.default_rng(0).normal(size=(13, 1, 8, 8)).astype(np.float32) * 2
            folder = tmp_path_factory.mktemp(scheme)
            made[scheme] = export_small(folder, trained("resnet8", scheme), inputs=inputs, batch=2)
        return made[scheme]

    return get


# ---- the same numbers ----


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_a_quantized_cnn_is_bit_equal_to_torch(resnet8, scheme):
    report, model = resnet8(scheme)
    found = report.verification
    assert found.exact
    assert found.inexact == ()
    assert found.samples == 13
    assert len(found.codes) == len(onnx_codes(model))
    assert 0 < found.largest_accumulator < 1 << 24
    assert f"Decode{DECODER[scheme]}" in report.functions
    assert report.checked_on == "given inputs"


def test_a_float_model_stays_within_its_tolerance(resnet8):
    report, model = resnet8("float")
    found = report.verification
    assert found.inexact
    assert 0 <= found.max_error <= 1e-4 * found.largest_output
    assert "BatchNormalization" not in Counter(node.op_type for node in model.graph.node)
    assert not model.functions


@pytest.mark.parametrize(
    ("scheme", "options"), [("ternary", {}), ("ternary", {"activations": "token"}), ("int4", {"group_size": 16})]
)
def test_a_transformer_is_static_and_near(tmp_path, scheme, options):
    report, model = export_small(tmp_path, trained("vit_micro", scheme, sizes={"depth": 1}, **options))
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"If", "Loop", "Scan", "Shape"}
    assert report.verification.inexact
    shapes = view(model)
    assert all(shapes.shape(name) is not None for node in model.graph.node for name in node.output)
    if options.get("activations"):
        assert "QuantizePerToken" in kinds
    if options.get("group_size"):
        assert "DequantizeInt4" in kinds


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Linear(12, 5)), (12,)),
        (nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), (7, 12)),
        (nn.Sequential(nn.Conv1d(3, 8, 3, padding="same"), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 4, 2)), (3, 9)),
        (nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, groups=4), nn.PReLU(8), nn.Conv2d(8, 8, 3, dilation=2)), (4, 11, 9)),
        (
            nn.Sequential(
                *(nn.Conv1d(3, 8, 3), nn.AvgPool1d(3, 2), nn.ReLU(), nn.Conv1d(8, 4, 3)),
                *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)),
            ),
            (3, 33),
        ),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(3, 1), nn.MaxPool2d(2), nn.Conv2d(8, 2, 1)), (3, 9, 9)),
    ],
    ids=["linear", "tokens", "conv1d", "grouped, dilated", "pools of one axis", "pools"],
)
@pytest.mark.parametrize("scheme", ["ternary", "binary"])
def test_any_module_is_bit_equal(tmp_path, module, shape, scheme):
    torch.manual_seed(0)
    model = quantize(copy.deepcopy(module), get_scheme(scheme, keep=None), example=torch.randn(1, *shape))
    model(torch.randn(8, *shape))
    report, _ = export_small(tmp_path, model.eval(), shape)
    assert report.verification.inexact == ()
    assert report.verification.exact


def test_a_layer_that_runs_twice_is_compared_twice(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    model = quantize(Twice(), "ternary", example=torch.randn(2, 6))
    model(torch.randn(8, 6))
    report, _ = export_small(tmp_path, model.eval(), (6,))
    assert [c.name for c in report.verification.codes] == ["/layer/Quantize_output_0", "/layer/Quantize_1_output_0"]
    assert report.verification.exact


class RealLevels(WeightQuantizer):
    """nf4 of the nearest levels, a scale for each channel."""

    format = get_format("nf4")
    granularity = PerChannel(0)

    def __init__(self, weight):
        super().__init__()
        self.attach(weight)

    def scale(self, w):
        return w.detach().abs().flatten(1).amax(dim=1)

    def levels(self, w, scale):
        return torch.from_numpy(self.format.levels.nearest((w / scale).detach().numpy()))


@dataclass(frozen=True)
class RealWeights:
    format_name = "nf4"

    def weight_quantizer(self, weight):
        return RealLevels(weight)


@pytest.mark.parametrize(("module", "shape"), [(nn.Conv2d(3, 5, 3), (3, 6, 6)), (nn.Linear(40, 7), (40,))])
def test_a_sum_of_real_levels_is_not_rounded(tmp_path, module, shape):
    """Codes times real levels: the file computes torch's floats, and counts their scales."""
    torch.manual_seed(0)
    model = quantize(copy.deepcopy(module), Scheme(RealWeights(), LearnedStep(8)), example=torch.zeros(1, *shape))
    model(torch.randn(8, *shape))
    report, file = export_small(tmp_path, model.eval(), shape)
    (output,) = report.verification.outputs
    assert output.error <= 1e-6 * output.largest
    assert "Round" not in {node.op_type for node in file.graph.node}
    (layer,) = inspect(tmp_path / "m.onnx").layers
    rows, depth = layer.shape[0], int(np.prod(layer.shape[1:]))
    assert layer.bits_per_weight == 8 * (-(-depth // 2) + 4) / depth
    assert layer.parameter_bytes == rows * (-(-depth // 2) + 4 + 4)


# ---- the form ----


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_a_quantized_layer_has_the_form_of_the_dialect(resnet8, scheme):
    _, model = resnet8(scheme)
    graph = view(model)
    products = [node for node in graph.nodes if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert {node.op_type for node in products} == {"Conv", "MatMul"}
    for node in products:
        assert len(node.input) == 2, "no bias"
        chain = []
        value = node.output[0]
        for _ in range(3):
            (user,) = graph.consumers[value]
            chain.append(user.op_type)
            value = user.output[0]
        assert chain == ["Round", "Mul", "Add"]
        weight = graph.producers[node.input[1]]
        if node.op_type == "MatMul":
            assert weight.op_type == "Transpose"
            weight = graph.producers[weight.input[0]]
        assert weight.domain == "subbyte"
        assert weight.op_type.startswith("Decode")
        codes = graph.producers[node.input[0]]
        if codes.op_type == "Pad":
            assert graph.constant(codes.input[2]) == 1
            assert not any(onnx.helper.get_node_attr_value(node, "pads"))
            codes = graph.producers[codes.input[0]]
        assert codes.domain == "subbyte"


def test_names_are_those_of_the_modules(resnet8):
    _, model = resnet8("ternary")
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"/stem/0/Conv", "/stages/0/0/conv1/DecodeTernary", "/stages/1/0/shortcut/0/Conv", "/head/MatMul"} <= set(
        names
    )
    assert "stages.0.0.conv1.weight_packed" in {tensor.name for tensor in model.graph.initializer}
    assert [i.name for i in model.graph.input] == ["input"]
    assert [o.name for o in model.graph.output] == ["logits"]
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, model.graph):
        assert not item.metadata_props
        assert not item.doc_string
    _, floating = resnet8("float")
    assert "/stages/1/0/conv1/Conv" in {node.name for node in floating.graph.node}, "not named after its batch norm"


def test_versions_are_pinned_and_functions_are_only_those_called(resnet8):
    report, model = resnet8("pow2")
    assert model.ir_version == 10
    assert {o.domain: o.version for o in model.opset_import} == {"": 21, "subbyte": 1}
    called = {node.op_type for node in model.graph.node if node.domain == "subbyte"}
    assert {f.name for f in model.functions} == called == set(report.functions)


def test_the_batch_is_static(tmp_path):
    report, model = export_small(tmp_path, trained("mlp", "float"), batch=3, check=False)
    assert report.verification is None
    assert report.input_shape == (3, 1, 8, 8)
    assert inspect(model).outputs == {"logits": (3, 10)}


# ---- from a checkpoint ----


def test_a_checkpoint_brings_its_shape_its_data_and_its_story(tmp_path):
    model = trained("resnet8", "ternary")
    normalization = Normalization(16.0, (0.3,), (0.4,))
    config = Config("resnet8", "ternary", (1, 8, 8), 10, data="digits", normalization=normalization)
    folder = save_checkpoint(tmp_path / "run", model, config)
    report = subbyte.export(folder, tmp_path / "m.onnx")
    assert report.checked_on == "test images of digits"
    assert report.verification.exact
    assert report.input_shape == (1, 1, 8, 8)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata == report.metadata
    assert metadata["subbyte.version"] == subbyte.__version__
    assert (metadata["subbyte.model"], metadata["subbyte.scheme"]) == ("resnet8", "ternary")
    assert metadata["subbyte.source"] == json.loads((folder / "checkpoint.json").read_text())["weights"]["sha256"]
    assert metadata["subbyte.data"] == "digits"
    assert metadata["subbyte.task"] == "classification"
    stored = {"largest": 16.0, "mean": [0.3], "deviation": [0.4], "axes": 2}  # axes after the channels
    assert json.loads(metadata["subbyte.normalization"]) == stored


# ---- size ----


def test_resnet18_shrinks_as_its_bits_do(tmp_path):
    sizes = {}
    for scheme in ("float", "ternary", "binary"):
        torch.manual_seed(0)
        model = create_for_scheme("resnet18", scheme, channels=3, size=64, classes=1000)
        example = torch.randn(2, 3, 64, 64)  # the weights do not know the size of the image
        quantize(model, scheme, example=example)
        model(example)
        sizes[scheme] = export(model, tmp_path / "m.onnx", example=example, check=False).nbytes
    assert sizes["float"] / sizes["ternary"] >= 13
    assert sizes["float"] / sizes["binary"] >= 20


# ---- what goes wrong ----


class Liar(nn.Module):
    """Says one thing to torch and another to the exporter."""

    def __init__(self, difference):
        super().__init__()
        self.layer, self.difference = nn.Linear(4, 2), difference

    def forward(self, x):
        y = self.layer(x)
        return y + self.difference if primitives.is_exporting() else y


@pytest.mark.parametrize("scheme", ["float", "int8"])
def test_a_file_that_differs_is_not_written(tmp_path, scheme):
    model = quantize(Liar(0.5), scheme, example=torch.randn(1, 4))
    model(torch.randn(8, 4))
    (tmp_path / "m.onnx").write_bytes(b"older file")
    with pytest.raises(ExportError, match="differ"):
        export(model.eval(), tmp_path / "m.onnx", example=torch.zeros(1, 4))
    assert (tmp_path / "m.onnx").read_bytes() == b"older file"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_one_bit_of_one_float_is_a_difference(tmp_path):
    model = quantize(Liar(1e-7), "int8", example=torch.randn(1, 4))
    model(torch.randn(8, 4))
    with torch.no_grad():
        model.layer.bias.fill_(1.0)
    with pytest.raises(ExportError, match="bit for bit"):
        export(model.eval(), tmp_path / "m.onnx", example=torch.zeros(1, 4))


def test_control_flow_on_values_is_refused(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="must not branch"):
        export(Branching(), tmp_path / "m.onnx", example=torch.zeros(1, 4))
    assert not list(tmp_path.iterdir())


def test_an_input_that_does_not_fit_the_model_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"input of shape \[1, 3, 8, 8\]"):
        export(trained("resnet8", "float"), tmp_path / "m.onnx", example=torch.zeros(1, 3, 8, 8))


def test_sums_beyond_float_are_refused(tmp_path):
    model = quantize(nn.Sequential(nn.Linear(1200, 2)), "int8", example=torch.randn(1, 1200))
    model(torch.randn(4, 1200))
    with torch.no_grad():
        model[0].parametrizations.weight.original.fill_(1.0)
    inputs = np.full((1, 1200), 100, np.float32)
    with pytest.raises(ExportError, match="exact only below"):
        export(model.eval(), tmp_path / "m.onnx", example=inputs, inputs=inputs)


def test_the_mode_of_the_model_is_left_as_it_was(tmp_path):
    model = trained("mlp", "ternary").train()
    export(model, tmp_path / "m.onnx", example=torch.zeros(1, 1, 8, 8), check=False)
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give an example input"),
        ({"example": torch.zeros(1, 4, dtype=torch.float64)}, "float32"),
        ({"example": torch.zeros(1, 4), "batch": 0}, "at least 1"),
        ({"example": torch.zeros(1, 4), "inputs": np.zeros((3, 5), np.float32)}, r"expected \[N, 4\]"),
        ({"example": torch.zeros(1, 4), "inputs": np.zeros((0, 4), np.float32)}, r"expected \[N, 4\]"),
        ({"example": torch.zeros(1, 4), "inputs": np.full((1, 4), np.nan, np.float32)}, "NaN"),
    ],
)
def test_requests_that_cannot_be_right(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        export(nn.Linear(4, 2), tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_told_before_the_work(tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        export(create("mlp", channels=1, size=8), tmp_path / "no" / "m.onnx", example=torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_diverged_is_refused_by_the_name_of_its_parameter(tmp_path, value):
    example = torch.rand(2, 8)
    model = quantize(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), "ternary", example=example)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.startswith("2.") and p.dim() == 2)[0, 0] = value
    with pytest.raises(ExportError, match=r"'2.weight' is NaN or infinite.*lower learning rate"):
        export(model, tmp_path / "m.onnx", example=example[:1])
    assert not (tmp_path / "m.onnx").exists()
