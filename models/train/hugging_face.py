"""A callback for Hugging Face's Trainer that takes care of the quantizers of a model from `quantize`.

Without transformers it is a class with the same hooks, for a trainer that calls them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from subbyte.errors import UsageError
from subbyte.models.quant import quantized_layers
from subbyte.models.train.quantizers import Quantizers

try:
    from transformers import TrainerCallback as _Base
except ImportError:
    _Base = object


class QuantizationTrainerCallback(_Base):  # type: ignore[misc]
    """Starts, freezes and reports quantizers: `Trainer(model=quantize(model, "int8"), callbacks=[...(freeze=0.8)])`.

    `freeze`: the share of the steps after which learned steps and thresholds keep their values. After every epoch what
    `Quantizers.report` gives is appended to the trainer's `state.log_history`, as "quantizers/flipped" and so on.
    """

    def __init__(self, freeze: float | None = None) -> None:
        super().__init__()
        self.freeze = freeze
        self._quantizers: Quantizers | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Find the quantizers; raises UsageError for a model that has none."""
        if not isinstance(model, nn.Module) or not quantized_layers(model):
            raise UsageError("the trainer's model has no quantized layer: give it the model that quantize() returns.")
        self._quantizers = Quantizers(model, self.freeze)
        self._quantizers.report()

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
