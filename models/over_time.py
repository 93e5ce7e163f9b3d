"""A model of one step, run over a whole sequence: what a recurrent model is trained with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.state import states_kept


class OverTime(nn.Module):
    """Run `step` on each slice of x along `axis` (1 or more), from the initial states; returns the last output.

    `step` takes [batch, ...] without that axis; with `flat`, [batch, features]. Its own states are not touched, so that
    the model of one step can be exported (`export(model, ..., step=True)`) while the sequence model has no state.
    """

    def __init__(self, step: nn.Module, axis: int = 1, *, flat: bool = False) -> None:
        super().__init__()
        self.step, self.axis, self.flat = step, axis, flat

    def forward(self, x: Tensor) -> Tensor:
        with states_kept(self.step, batch=x.shape[0]):
            for part in self._slices(x):
                y: Tensor = self.step(part)
        return y

    def inputs_of_steps(self, x: Tensor) -> Tensor:
        """The inputs of `step` for sequences x [N, ...], one sequence after the other: [N x length, ...].

        Raises UsageError for x that lacks the axis of the steps.
        """
        if x.dim() <= self.axis:
            raise UsageError(f"a sequence has its steps along axis {self.axis}, got an input of shape {list(x.shape)}")
        return torch.stack(self._slices(x), 1).flatten(0, 1)

    def _slices(self, x: Tensor) -> list[Tensor]:
        return [part.flatten(1) if self.flat else part for part in x.unbind(self.axis)]


def over_time(model: nn.Module) -> OverTime:
    """`model` as a model over sequences; raises UsageError for a model that runs no step over them."""
    if not isinstance(model, OverTime):
        raise UsageError(
            f"{type(model).__name__} is not a model of one step that runs over a sequence "
            "(subbyte.models.over_time.OverTime, such as the zoo's 'gru'); export the whole model, without step"
        )
    return model
