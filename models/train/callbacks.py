"""A Lightning callback that takes care of the quantizers, in `train` and in a loop of your own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from subbyte.errors import UsageError
from subbyte.models.quant import Recipe, Rule, Scheme, quantize, quantized_layers
from subbyte.models.train.lightning import Callback, LightningModule, Trainer
from subbyte.models.train.quantizers import Quantizers


class QuantizationCallback(Callback):
    """Starts, freezes and reports the quantizers of the attribute `of` of a LightningModule ("" for itself).

        Trainer(callbacks=[QuantizationCallback("int4", example=images, freeze=0.8)]).fit(MyModule())

    `recipe`, as for `quantize`: quantize the module before the optimizer is made; None: it is quantized already, or
    stays in float.
    `freeze`: the share of the steps after which learned steps and thresholds keep their values. After every epoch it
    logs what `Quantizers.report` gives, as "quantizers/flipped" and so on. Raises UsageError where there is nothing of
    that name.
    """

    def __init__(
        self,
        recipe: str | Scheme | Recipe | Sequence[Rule] | None = None,
        *,
        of: str = "model",
        example: Any = None,
        freeze: float | None = None,
    ) -> None:
        self.recipe, self.of, self.example, self.freeze = recipe, of, example, freeze
        self.reported: dict[str, float] = {}
        self._quantizers: Quantizers | None = None
        self._kept: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Quantize the module, once."""
        if stage != "fit" or self._quantizers is not None:
            return
        model = getattr(pl_module, self.of, None) if self.of else pl_module
        if not isinstance(model, nn.Module):
            raise UsageError(f"{type(pl_module).__name__} has no module '{self.of}'; name its network with of=.")
        if self.recipe is not None and not quantized_layers(model):
            quantized = quantize(model, self.recipe, example=self.example)
            if quantized is not model and self.of:
                setattr(pl_module, self.of, quantized)
            model = quantized
        self._quantizers = Quantizers(model, self.freeze)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the first look, unless a run is resumed."""
        quantizers = self._found()
        if self._kept:
            quantizers.load_state_dict(self._kept)
        else:
            quantizers.report()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Tell the quantizers how far training is."""
        self._found().begin_step(trainer.global_step / max(1, trainer.estimated_stepping_batches))

    def on_train_batch_end(self, *_: Any) -> None:
        """Hold what is frozen."""
        self._found().end_step()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epoch."""
        self.reported = self._found().report()
        pl_module.log_dict({f"quantizers/{name}": value for name, value in self.reported.items()}, sync_dist=False)

    def state_dict(self) -> dict[str, Any]:
        """What is kept to resume."""
        return self._quantizers.state_dict() if self._quantizers is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up when training starts."""
        self._kept = state_dict

    def _found(self) -> Quantizers:
        assert self._quantizers is not None, "Lightning calls setup first"
        return self._quantizers
