"""Post-training quantization of a float ONNX file: calibration in onnxruntime, the result in the dialect.

The file's products with constant weights become layers of torch, which a recipe quantizes and calibrators give steps,
as those of a checkpoint; the nodes that the exporter writes for such layers replace the products. The rest of the graph
stays as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
import torch
from torch import nn

from subbyte import __version__
from subbyte.dialect.function import function_of
from subbyte.dialect.function_calls import opset_of
from subbyte.dialect.graph import view
from subbyte.dialect.known_operators import QUANTIZERS, full_name
from subbyte.dialect.names import IR_VERSION, OPSET
from subbyte.dialect.walk import every_node, label_of
from subbyte.errors import DataError, ExportError, QuantizationError, UsageError
from subbyte.export.engine import open_session, run_onnx, with_outputs
from subbyte.export.float_products import FloatProduct, float_products
from subbyte.export.functions import append_functions
from subbyte.export.onnx_file import load_onnx, save_onnx
from subbyte.export.quantized_nodes import Emitted, emit
from subbyte.files.output import checked_output
from subbyte.models.data import Data, load_data
from subbyte.models.post.calibration import calibrator_of
from subbyte.models.post.calibration_data import calibration_batches
from subbyte.models.post.reporting import reporting, tracked
from subbyte.models.post.sample import Sample
from subbyte.models.post.settings import PostTraining, settings_of
from subbyte.models.quant import QuantizedProduct, Recipe, quantize, quantized_layers
from subbyte.models.quant.first_batch import FirstBatchQuantizer
from subbyte.models.tasks import Metric, get_task

Array = npt.NDArray[Any]
COMPARED = 256  # test samples that both files run


@dataclass(frozen=True)
class OnnxQuantization:
    """The written file against the float one. `float_nodes`: why products stayed in float, by the node's name.

    `relative_error`: of the first output on `compared` test samples, |quantized - float| / |float|. The scores are by
    the data's task, None where the output is not one of it.
    """

    path: Path
    nbytes: int
    layers: tuple[str, ...]
    float_nodes: Mapping[str, str]
    compared: int
    relative_error: float
    metric: Metric
    score: float | None
    float_score: float | None

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.nbytes:,} bytes, {len(self.layers)} products quantized"]
        against = f"in onnxruntime, on {self.compared} test samples: relative error {self.relative_error:.2%}"
        if self.score is not None and self.float_score is not None:
            words = self.metric.words
            against += f", {self.metric.title} {words(self.score)} (float {words(self.float_score)})"
        stay = [f"'{name}' stays in float: {reason}" for name, reason in self.float_nodes.items()]
        return "\n".join([*lines, against, *stay])


def quantize_onnx(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    data: str | Data | None = None,
    progress: bool = True,
    **fields: Any,
) -> OnnxQuantization:
    """Quantize a float ONNX file without training, and write a file of the dialect.

        quantize_onnx("float.onnx", "int8.onnx", data="digits", scheme="int8")

    Conv over one or two axes, Gemm and MatMul are quantized where their weights are constants of the file. The keywords
    are the fields of `models.post.PostTraining` but `steps`, which need a checkpoint; rules of a recipe name nodes and
    the types Conv1d, Conv2d and Linear. `data`: to calibrate and compare with; by default what the file says.

    Raises UsageError for options that do not fit and a file that is quantized already, ModelError for one that cannot
    be read, DataError for data that cannot be calibrated with, QuantizationError where nothing can be quantized as
    asked, ExportError for a result that is not finite. Nothing is written then.
    """
    settings = settings_of({**fields, **({} if isinstance(data, Data) else {"data": data})})
    if settings.steps:
        raise UsageError("steps change a model of torch: quantize a checkpoint with them, and export the result.")
    recipe = settings.chosen_recipe()
    with checked_output(Path(output), "output", source), reporting(progress):
        model = _float_model(source)
        found = data if isinstance(data, Data) else _data(settings, model)
        batches = [
            batch.numpy() for batch in calibration_batches(found, settings.samples, settings.batch_size, settings.seed)
        ]
        products, stay = float_products(view(model))
        layers = _layers(products, recipe, stay)
        _calibrate(model, layers, batches, settings)
        made = _rewritten(model, layers)
        _describe(made, settings, recipe, (found.name, sum(map(len, batches))))
        try:
            onnx.checker.check_model(made, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"the quantized file is not valid ONNX: {str(error).splitlines()[0]}") from error
        compared = _compared(model, made, found)
        written = save_onnx(made, output)
    return OnnxQuantization(Path(output), len(written), tuple(p.name for p, _ in layers), stay, *compared)


def _float_model(source: str | os.PathLike[str]) -> onnx.ModelProto:
    """The model with one input, at the opset of the dialect or a later one."""
    loaded = load_onnx(source)
    for node in every_node(loaded):
        if full_name(node) in QUANTIZERS or function_of(node) is not None:
            raise UsageError(
                f"'{source}' is quantized already ('{label_of(node)}' is {full_name(node)}); give the float file"
            )
    model = onnx.ModelProto()
    model.CopyFrom(loaded)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise UsageError(f"'{source}' has {len(inputs)} inputs ({', '.join(inputs)}); calibration data fills one")
    if opset_of(model.opset_import) < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:  # the converter raises whatever an operator's rule does
            raise ExportError(
                f"'{source}' has opset {opset_of(loaded.opset_import)} and cannot be converted to {OPSET}: "
                f"{str(error).splitlines()[0]}; export it with opset {OPSET}"
            ) from error
    model.ir_version = max(model.ir_version, IR_VERSION)
    return model


def _data(settings: PostTraining, model: onnx.ModelProto) -> Data:
    said = {entry.key: entry.value for entry in model.metadata_props}.get("subbyte.data")
    name = settings.data or (said if said != "custom" else None)
    if name is None:
        raise UsageError("a float ONNX file needs data to calibrate with; name a data set (--data)")
    return load_data(name, settings.data_path, **settings.data_options)


def _layers(
    products: Sequence[FloatProduct], recipe: Recipe, stay: dict[str, str]
) -> list[tuple[FloatProduct, QuantizedProduct]]:
    """The products that the recipe quantizes, with their layers; adds the others to `stay`."""
    held = nn.ModuleDict({product.name: product.layer for product in products}).eval()
    if products:
        quantize(held, recipe)
    layers = quantized_layers(held)
    for product in products:
        if product.name not in layers:
            stay[product.name] = "the recipe leaves it in float"
    if not layers:
        reasons = "; ".join(f"'{name}': {reason}" for name, reason in list(stay.items())[:5])
        raise QuantizationError(f"no product of the file can be quantized ({reasons or 'it has none'})")
    return [(product, layers[product.name]) for product in products if product.name in layers]


def _calibrate(
    model: onnx.ModelProto,
    layers: Sequence[tuple[FloatProduct, QuantizedProduct]],
    batches: Sequence[Array],
    settings: PostTraining,
) -> None:
    """Set the steps of all layers, of activations from what onnxruntime computes."""
    of_activations, of_weights = calibrator_of(settings.calibrator), calibrator_of(settings.weights, weights=True)
    quantizers = [
        (product.node.input[0], product.name, layer.activation_quantizer)
        for product, layer in layers
        if isinstance(layer.activation_quantizer, FirstBatchQuantizer)
    ]
    samples = {name: Sample() for _, name, _ in quantizers}
    for values in _values(model, list(dict.fromkeys(value for value, _, _ in quantizers)), batches):
        for value, name, quantizer in quantizers:
            try:
                samples[name].add(quantizer.rows(torch.from_numpy(values[value])))
            except QuantizationError as error:
                raise QuantizationError(f"the input of '{name}' on calibration data: {error}") from error
    for _, name, quantizer in quantizers:
        quantizer.calibrate(samples[name].rows(), of_activations)
    for _, layer in layers:
        if layer.weight_quantizer is not None:
            layer.weight_quantizer.calibrate(of_weights)


def _values(model: onnx.ModelProto, names: Sequence[str], batches: Sequence[Array]) -> Any:
    """Values of the graph by name, for each batch of the file's own size."""
    given = next(v for v in model.graph.input if v.name not in {tensor.name for tensor in model.graph.initializer})
    session = open_session(with_outputs(model, [name for name in names if name != given.name]), optimized=False)
    wanted = [output.name for output in session.get_outputs() if output.name in names]
    shape = session.get_inputs()[0].shape
    _refuse_other_shape(batches[0], shape)
    whole = np.concatenate(batches)
    size = shape[0] if isinstance(shape[0], int) else len(batches[0])
    if len(whole) < size:
        raise DataError(f"the file takes {size} samples at once, {len(whole)} are given to calibrate with; give more")
    parts = [
        part
        for part in (whole[i : i + size] for i in range(0, len(whole), size))
        if len(part) == size or not isinstance(shape[0], int)
    ]
    for part in tracked(parts, "calibration", len(parts)):
        found = dict(zip(wanted, session.run(wanted, {given.name: part}), strict=True)) if wanted else {}
        yield found | ({given.name: part} if given.name in names else {})


def _refuse_other_shape(batch: Array, shape: Sequence[Any]) -> None:
    fits = len(shape) == batch.ndim and all(
        not isinstance(want, int) or want == got for want, got in zip(shape[1:], batch.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"the file takes inputs {list(shape)}, the data's are {list(batch.shape[1:])} without the batch; name data "
            "of that shape"
        )


def _rewritten(model: onnx.ModelProto, layers: Sequence[tuple[FloatProduct, QuantizedProduct]]) -> onnx.ModelProto:
    """A copy whose products are the nodes of the quantized layers, without the weights that nothing reads now."""
    by_output = {product.node.output[0]: (product, layer) for product, layer in layers}
    emitted = Emitted()
    for node in model.graph.node:
        if node.output and node.output[0] in by_output:
            emit(*by_output[node.output[0]], emitted)
        else:
            emitted.nodes.append(node)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend(emitted.nodes)
    used = {name for node in every_node(made) for name in node.input} | {one.name for one in made.graph.output}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used]
    dropped = {tensor.name for tensor in made.graph.initializer} - {tensor.name for tensor in kept}
    del made.graph.initializer[:]
    made.graph.initializer.extend([*kept, *emitted.initializers])
    inputs = [value for value in made.graph.input if value.name not in dropped]
    del made.graph.input[:]
    made.graph.input.extend(inputs)
    return append_functions(made)


def _describe(made: onnx.ModelProto, settings: PostTraining, recipe: Recipe, data: tuple[str, int]) -> None:
    """Say in the file how it was quantized: with which data set and how many samples of it."""
    said = {entry.key: entry.value for entry in made.metadata_props}
    added = {
        "subbyte.version": __version__,
        "subbyte.scheme": recipe.name,
        "subbyte.data": data[0],
        "subbyte.post_training": json.dumps(settings.record(*data)),
    }
    onnx.helper.set_model_props(made, said | added)


def _compared(model: onnx.ModelProto, made: onnx.ModelProto, data: Data) -> tuple[Any, ...]:
    """(samples, relative error, metric, score, float score) of both files in onnxruntime; raises ExportError."""
    inputs, targets = data.test_arrays(COMPARED)
    name = model.graph.output[0].name
    expected, found = run_onnx(model, inputs)[name], run_onnx(made, inputs)[name]
    if not np.isfinite(found).all():
        raise ExportError("the quantized file gives NaN or infinity on test samples; look at the float file's outputs")
    difference = np.linalg.norm((found - expected).astype(np.float64))
    error = float(difference / max(np.linalg.norm(expected.astype(np.float64)), 1e-30))
    task = get_task(data.task, **data.task_options)
    if not task.fits(tuple(expected.shape[1:]), data) or len(expected) != len(targets):
        return len(inputs), error, task.metric, None, None
    scores = []
    for outputs in (found, expected):
        score = task.score(data.shape)
        score.add(outputs, targets)
        scores.append(score.result())
    return len(inputs), error, task.metric, *scores
