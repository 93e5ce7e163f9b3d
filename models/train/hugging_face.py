"""A callback for Hugging Face's Trainer that takes care of the quantizers of a model from `quantize`.

Without transformers it is a class with the same hooks, for a trainer that calls them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from subbyte.errors import UsageError, one_line
from subbyte.files.output import write_file
from subbyte.models.quant import quantized_layers
from subbyte.models.train.quantizers import Quantizers

try:
    from transformers import TrainerCallback as _Base
except ImportError:
    _Base = object


class QuantizationTrainerCallback(_Base):  # type: ignore[misc]
    """Starts, freezes and reports quantizers: `Trainer(model=quantize(model, "int8"), callbacks=[...(freeze=0.8)])`.

    `freeze`: the share of the steps after which learned steps and thresholds keep their values. After every epoch what
    `Quantizers.report` gives is appended to the trainer's `state.log_history`, as "quantizers/flipped" and so on. What
    flips are counted from is saved in each checkpoint, and taken up where a run resumes from it.
    """

    def __init__(self, freeze: float | None = None) -> None:
        super().__init__()
        self.freeze = freeze
        self._quantizers: Quantizers | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Find the quantizers; raises UsageError for a model that has none."""
        if not isinstance(model, nn.Module) or not quantized_layers(model):
            raise UsageError("the trainer's model has no quantized layer: give it the model that quantize() returns.")
        quantizers = self._quantizers = Quantizers(model, self.freeze)
        if not state.global_step:
            quantizers.report()
            return
        file = _memory_file(args, state)
        try:
            _take_up(quantizers, load_file(file))
        except (OSError, ValueError, SafetensorError) as error:
            quantizers.report()
            warnings.warn(
                f"{file}: flipped and oscillating weights are counted anew from step {state.global_step} on "
                f"({one_line(error)}); resume from a checkpoint in output_dir that this callback saved.",
                stacklevel=2,
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the codes that flips are counted from beside the trainer's own checkpoint of this step."""
        if state.is_world_process_zero:
            kept = self._found().state_dict()
            tensors = {f"{part}/{name}": found.cpu() for part in kept for name, found in kept[part].items()}
            write_file(_memory_file(args, state), save(tensors))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the quantizers how far training is."""
        self._found().begin_step(state.global_step / max(1, state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hold what is frozen."""
        self._found().end_step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the epoch."""
        row = {f"quantizers/{name}": value for name, value in self._found().report().items()}
        state.log_history.append({**row, "epoch": state.epoch, "step": state.global_step})

    def _found(self) -> Quantizers:
        assert self._quantizers is not None, "the trainer calls on_train_begin first"
        return self._quantizers


def _memory_file(args: Any, state: Any) -> Path:
    """In the folder that the trainer makes for the checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "subbyte-quantizers.safetensors"


def _take_up(quantizers: Quantizers, tensors: Mapping[str, Tensor]) -> None:
    """Go on from what was saved; raises ValueError where it is of another model."""
    quantizers.report()
    fresh = quantizers.state_dict()
    now = {f"{part}/{name}": (one.shape, one.dtype) for part in fresh for name, one in fresh[part].items()}
    if now != {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}:
        raise ValueError("it is of another model")
    kept = {part: {name: tensors[f"{part}/{name}"] for name in fresh[part]} for part in fresh}
    quantizers.load_state_dict(kept)
