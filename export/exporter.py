"""Exports a checkpoint or a module to an ONNX file: trace, clean up, add functions, compare with torch, write."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from subbyte import __version__
from subbyte.dialect.example_inputs import InputOfFile, index_ranges, random_inputs
from subbyte.dialect.function import output_shapes
from subbyte.dialect.names import OPSET
from subbyte.errors import (
    DataError,
    ExportError,
    ExportWarning,
    MissingDependencyError,
    QuantizationError,
    SubbyteError,
    UsageError,
)
from subbyte.export.cleanup import clean
from subbyte.export.engine import onnx_codes
from subbyte.export.onnx_file import save_onnx
from subbyte.export.outputs import INPUT, named_outputs
from subbyte.export.state import finish_states, lifted, refuse_what_forward_did, state_names, versions
from subbyte.export.verify import Verification, canonical_paths, quantized_layer, verify
from subbyte.files.output import checked_output
from subbyte.models.checkpoint import Checkpoint, load_checkpoint
from subbyte.models.checkpoint_files import files_of
from subbyte.models.over_time import OverTime, over_time
from subbyte.models.quant.eval_constants import exporting, named_constants, refresh
from subbyte.models.quant.first_batch import FirstBatchQuantizer, not_starting
from subbyte.models.quant.observe import Observation, observe
from subbyte.models.quant.quantizer import ActivationQuantizer
from subbyte.models.state import states_kept

Array = npt.NDArray[Any]

CHECKED_SAMPLES = 8
INPUT_DTYPES = ("float32", "int64", "int32", "uint8", "int8")  # that a bundle takes, and torch's layers


@dataclass(frozen=True)
class ExportReport:
    """The written file, and the result of its comparison with torch (None without `check`)."""

    path: Path
    nbytes: int
    sha256: str  # of the file
    input_shape: tuple[int, ...]
    input_dtype: str
    nodes: int
    functions: tuple[str, ...]
    metadata: dict[str, str]
    checked_on: str  # "test images of digits", "given inputs", "random inputs", "nothing"
    verification: Verification | None
    notes: tuple[str, ...] = ()  # quantized layers that are not in the file, or were never trained

    def __str__(self) -> str:
        dtype = "" if self.input_dtype == "float32" else f" of {self.input_dtype}"
        text = f"{self.path}: {self.nbytes:,} bytes, {self.nodes} nodes, input {list(self.input_shape)}{dtype}"
        checked = f"{self.verification} ({self.checked_on})" if self.verification else "not checked"
        return "\n".join([text, checked, *self.notes])


def export(
    source: str | os.PathLike[str] | Checkpoint | nn.Module,
    output: str | os.PathLike[str],
    *,
    example: Tensor | Array | None = None,
    batch: int = 1,
    check: bool = True,
    inputs: Tensor | Array | None = None,
    step: bool = False,
) -> ExportReport:
    """Write a checkpoint folder, a Checkpoint or a module as ONNX (docs/onnx-dialect.md) with a static batch.

    A module needs an `example` input [any, ...], of which only shape and dtype are used: float32 or integers, such as
    tokens. With `check` the file is run in onnxruntime on `inputs` [N, ...] (by default test inputs of the checkpoint's
    data, else random ones) and compared with torch; a file that differs is not written. The forward may return one
    tensor, or a tuple, list or dict of them: each is an output (named as in `export/outputs.py`), and each is compared.
    The model is not changed; the export does not initialize quantizers.

    With `step` the file has one step of a model that runs over sequences (`OverTime`), its states as inputs and
    outputs (docs/state.md). `example` and `inputs` are those of the whole model.

    Quantized layers that have only ever seen zeros, that are not executed, or whose output is unused are listed in
    `notes`, with an ExportWarning.

    Raises ExportError, UsageError, CheckpointError.
    """
    if batch < 1:
        raise UsageError(f"the batch must be at least 1, got {batch}")
    target = Path(output)
    read = files_of(Path(source)) if isinstance(source, (str, os.PathLike)) else []
    with checked_output(target, "output", *read):
        checkpoint = _checkpoint(source)
        module = source if isinstance(source, nn.Module) else checkpoint.model  # type: ignore[union-attr]
        _refuse_diverged(module)
        one = _one_input(checkpoint, example)
        sequences = over_time(module) if step else None
        module = module if sequences is None else sequences.step
        samples, checked_on = _samples(checkpoint, inputs, one, batch) if check else (None, "nothing")
        traced = np.repeat(_of_steps(sequences, one)[:1], batch, axis=0)
        with _eval_mode(module):
            model, notes = _traced(module, traced)
            declared = {entry.key: entry.value for entry in model.metadata_props}
            metadata = _metadata(checkpoint, module) | declared
            onnx.helper.set_model_props(model, metadata)
            try:
                onnx.checker.check_model(model, full_check=True)
            except onnx.checker.ValidationError as error:
                raise ExportError(f"the export is not valid ONNX: {str(error).splitlines()[0]}") from error
            found = None
            if check:
                samples = _random(model, one, _count(one, batch)) if samples is None else samples
                found = verify(model, module, _of_steps(sequences, samples))
        written = save_onnx(model, target)
    for note in notes:
        warnings.warn(note, ExportWarning, stacklevel=2)
    return ExportReport(
        path=target,
        nbytes=len(written),
        sha256=hashlib.sha256(written).hexdigest(),
        input_shape=traced.shape,
        input_dtype=str(traced.dtype),
        nodes=len(model.graph.node),
        functions=tuple(f.name for f in model.functions),
        metadata=metadata,
        checked_on=checked_on,
        verification=found,
        notes=notes,
    )


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """A module in eval mode; each of its parts is then as it was."""
    training = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        yield
    finally:
        for name, part in module.named_modules():
            part.training = training.get(name, False)


def _of_steps(sequences: OverTime | None, inputs: Array) -> Array:
    """The inputs of the file: of each step, where the inputs of the model are `sequences`."""
    return inputs if sequences is None else sequences.inputs_of_steps(torch.from_numpy(inputs)).numpy()


def _refuse_diverged(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ExportError(
                f"parameter '{name.replace('parametrizations.', '').removesuffix('.original')}' is NaN or infinite: "
                "training diverged; train again at a lower learning rate, or export an earlier checkpoint"
            )


def _checkpoint(source: str | os.PathLike[str] | Checkpoint | nn.Module) -> Checkpoint | None:
    if isinstance(source, nn.Module):
        return None
    return source if isinstance(source, Checkpoint) else load_checkpoint(Path(source))


def _one_input(checkpoint: Checkpoint | None, example: Tensor | Array | None) -> Array:
    """One input [1, ...] of zeros, in the shape and dtype of the model's; tokens of 0 are in every vocabulary."""
    if example is not None:
        dtype = str(example.dtype).removeprefix("torch.")
        if len(example.shape) < 1 or dtype not in INPUT_DTYPES:
            raise UsageError(
                f"the example must be a batch of {', '.join(INPUT_DTYPES)}, got {dtype} {tuple(example.shape)}"
            )
        return np.zeros((1, *(int(size) for size in example.shape[1:])), dtype)
    if checkpoint is None:
        raise UsageError(
            "the input shape of a module is unknown; give an example input: export(module, file, example=x)"
        )
    return checkpoint.config.example().numpy()


def _traced(module: nn.Module, example: Array) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model of a module in eval mode, and notes on its states and quantized layers."""
    with states_kept(module, len(example)):
        return _from_initial_states(module, torch.from_numpy(example))


def _from_initial_states(module: nn.Module, example: Tensor) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    quantizers = {
        name.rpartition(".")[0]: part for name, part in module.named_modules() if isinstance(part, ActivationQuantizer)
    }
    try:
        with torch.no_grad(), not_starting() as untouched, states_kept(module):
            before = versions(module)
            result, seen = observe(module, lambda: module(example))
            refuse_what_forward_did(before, module)
        names = list(named_outputs(result))
        pairs = state_names(module, names)
        executed = {call.layer for call in seen}
        for layer, quantizer in quantizers.items():
            if quantizer in untouched:
                raise QuantizationError(f"layer '{layer}' has seen no data; run a batch through the model first")
        refresh(module, packed=True, unused=[quantizers[layer] for layer in quantizers.keys() - executed])
        with exporting(output_shapes), _quiet(), torch.no_grad(), lifted(module) as values:
            program = torch.onnx.export(
                module,
                (example, *values),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT, *(state.input for state in pairs)],
                optimize=True,
                verbose=False,
            )
    except SubbyteError:
        raise
    except Exception as error:  # torch's exporter passes on any exception of the model's code
        raise ExportError(
            f"torch cannot trace the model on an input of shape {list(example.shape)}: {_cause(error)}. It must accept "
            f"one tensor of this shape, of {str(example.dtype).removeprefix('torch.')}, and must not branch on its "
            "values"
        ) from error
    if program is None or len(program.model.graph.inputs) != 1 + len(pairs):
        raise ExportError("the model must have one input tensor")
    if len(program.model.graph.outputs) != len(names) + len(pairs):
        raise ExportError(
            f"torch traced {len(program.model.graph.outputs)} outputs, but the forward returns {len(names)} "
            f"({', '.join(names)}); it must return the same outputs during export"
        )
    kept = {name for name, _ in (*module.named_parameters(), *module.named_buffers(), *named_constants(module))}
    inputs, outputs = [INPUT, *(pair.input for pair in pairs)], [*names, *(pair.output for pair in pairs)]
    model = clean(program.model, input_names=inputs, output_names=outputs, parameters=kept - {*inputs, *outputs})
    notes = tuple(finish_states(model, module, pairs))
    return model, (*notes, *_notes(quantizers, seen, canonical_paths(module), model))


def _notes(
    quantizers: Mapping[str, ActivationQuantizer],
    seen: Sequence[Observation],
    paths: Mapping[str, str],
    model: onnx.ModelProto,
) -> Iterator[str]:
    """Messages about quantized layers that are missing from the file or untrained, in the order of the modules."""
    executed, used = {call.layer for call in seen}, {call.layer for call in seen if call.used}
    callers = {paths.get(quantized_layer(value) or "") for value in onnx_codes(model)}
    written = {call.layer for call in seen if call.caller in callers}
    for layer, quantizer in quantizers.items():
        if layer not in executed:
            yield f"'{layer}' is quantized, but the forward does not execute it in eval mode: it is not in the file"
        elif layer not in used and layer not in written:
            yield f"the output of '{layer}' is unused: it is not in the file"
        elif isinstance(quantizer, FirstBatchQuantizer) and not quantizer.started:
            yield (
                f"'{layer}' has only ever seen zeros: its input is quantized with the default step 1; train the "
                "model, or run data through it for which this input is not zero"
            )


def _metadata(checkpoint: Checkpoint | None, module: nn.Module) -> dict[str, str]:
    metadata = {"subbyte.version": __version__, "subbyte.model": type(module).__name__}
    if checkpoint is None:
        return metadata
    config = checkpoint.config
    metadata["subbyte.model"] = config.model or metadata["subbyte.model"]
    metadata["subbyte.scheme"] = config.scheme
    metadata["subbyte.source"] = checkpoint.sha256
    metadata["subbyte.data"] = config.data
    metadata["subbyte.task"] = config.task
    options = {"task_options": config.task_options, "data_options": config.data_options}
    metadata |= {f"subbyte.{name}": json.dumps(given) for name, given in options.items() if given}
    if config.normalization is not None:
        metadata["subbyte.normalization"] = json.dumps(dataclasses.asdict(config.normalization))
    if config.class_names:
        metadata["subbyte.class_names"] = json.dumps(list(config.class_names))
    if config.preprocessing:
        metadata["subbyte.preprocessing"] = json.dumps(config.preprocessing)
    return metadata


def _samples(
    checkpoint: Checkpoint | None, inputs: Tensor | Array | None, one: Array, batch: int
) -> tuple[Array | None, str]:
    """Inputs for the comparison with torch, of the shape and dtype of `one`, and their source; None of random ones."""
    shape = one.shape[1:]
    if inputs is not None:
        given = torch.as_tensor(inputs).detach().cpu().numpy()
        if one.dtype.kind != "f" and given.dtype != one.dtype:
            raise UsageError(f"inputs are {given.dtype}, the model takes {one.dtype}: convert them")
        given = np.ascontiguousarray(given, one.dtype)
        if given.shape[1:] != shape or not len(given):
            raise UsageError(f"inputs have shape {list(given.shape)}, expected [N, {', '.join(map(str, shape))}]")
        if not np.isfinite(given).all():
            raise UsageError("inputs contain NaN or infinite values; give finite ones")
        return given, "given inputs"
    if checkpoint is not None:
        try:
            from subbyte.models.data import load_recorded

            data = load_recorded(checkpoint.config.data, None, checkpoint.config.data_options)
            known = data.test_arrays(_count(one, batch))[0]
            if known.shape[1:] == shape and known.dtype == one.dtype:
                return known, f"test {'images' if len(shape) == 3 else 'inputs'} of {data.name}"
        except (DataError, UsageError, MissingDependencyError):
            pass  # the data set is not on this machine: random inputs check the arithmetic, too
    return None, "random inputs"


def _random(model: onnx.ModelProto, one: Array, count: int) -> Array:
    """Random inputs of the shape and dtype of `one`, which index what the model looks up."""
    spec = InputOfFile(INPUT, str(one.dtype), (count, *one.shape[1:]))
    return random_inputs([spec], ranges=index_ranges(model))[0]


def _count(one: Array, batch: int) -> int:
    """How many inputs the file is compared with torch on."""
    return max(batch, CHECKED_SAMPLES if one.size < 50_000 else 2)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses warnings of torch's exporter about optional packages and its own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """The first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
