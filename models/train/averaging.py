"""An exponential moving average of a model's weights, which is tested and saved in their place.

Lightning has one that copies the whole module with its data and writes through `.data`, which the constants of
quantizers do not see; this one keeps a copy of the tensors alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.models.train.lightning import Callback, LightningModule, Trainer


def averaged_decay(decay: float, updates: int) -> float:
    """The decay of an update: smaller at first, so that the average forgets the weights that training starts from."""
    return min(decay, (1 + updates) / (10 + updates))


class Average(Callback):
    """After every step of the optimizer: average += (1 - d) (weight - average), d = averaged_decay(decay, steps)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.updates = 0
        self._tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are; tensors that are not real numbers, such as counters, are copied."""
        decay = averaged_decay(self.decay, self.updates)
        self.updates += 1
        for name, tensor in _saved_tensors(self.model):
            kept = self._tensors[name] = self._tensors[name].to(tensor.device)
            if kept.is_floating_point():
                kept.lerp_(tensor, 1 - decay)
            else:
                kept.copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average in place of its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in _saved_tensors(self.model):
            kept = tensor.clone()
            tensor.copy_(self._tensors[name])
            self._tensors[name] = kept

    # ---- Lightning's hooks ----

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, unless the run is resumed."""
        if not self._tensors:
            self._tensors = {name: tensor.detach().clone() for name, tensor in _saved_tensors(self.model)}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Average after a step of the optimizer; parts of a step that accumulate do not count."""
        if trainer.global_step > self.updates:
            self.update()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test the average."""
        self._swap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        self._swap()

    def state_dict(self) -> dict[str, Any]:
        """What is kept to resume."""
        return {"updates": self.updates, "tensors": self._tensors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the average of the run that is resumed; raises ValueError where it is of another model."""
        shapes = {name: tensor.shape for name, tensor in _saved_tensors(self.model)}
        if shapes != {name: tensor.shape for name, tensor in state_dict["tensors"].items()}:
            raise ValueError("the average is not of this model")
        self.updates, self._tensors = int(state_dict["updates"]), dict(state_dict["tensors"])


def _saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that are saved with a model, the tensors themselves: writes to them are counted."""
    saved = model.state_dict().keys()
    return ((name, t) for name, t in chain(model.named_parameters(), model.named_buffers()) if name in saved)
