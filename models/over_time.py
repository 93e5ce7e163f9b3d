"""A model of one step, run over a whole sequence: what a recurrent model is trained with."""

from __future__ import annotations

from torch import Tensor, nn

from subbyte.models.state import states_kept


class OverTime(nn.Module):
    """Run `step` on each slice of x along `axis` (1 or more), from the initial states; returns the last output.

    `step` takes [batch, ...] without that axis; with `flat`, [batch, features]. Its own states are not touched, so that
    the model of one step can be exported (`export(model.step, ...)`) while the sequence model has no state.
    """

    def __init__(self, step: nn.Module, axis: int = 1, *, flat: bool = False) -> None:
        super().__init__()
        self.step, self.axis, self.flat = step, axis, flat

    def forward(self, x: Tensor) -> Tensor:
        with states_kept(self.step, batch=x.shape[0]):
            for part in x.unbind(self.axis):
                y: Tensor = self.step(part.flatten(1) if self.flat else part)
        return y
