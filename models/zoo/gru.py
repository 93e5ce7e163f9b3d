"""A recurrent classifier: a GRU in integers that reads the rows of an image one after the other, and a Linear.

`model.step` takes one row, [batch, channels * width], and keeps its state between calls: it is what a stream runs.
"""

from __future__ import annotations

from torch import Tensor, nn

from subbyte.models.layers.gru import GRUCell, reads_state
from subbyte.models.over_time import OverTime
from subbyte.models.zoo.registry import Size, check_counts, register_model


class RowClassifier(nn.Module):
    """One row -> logits of what was seen so far."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.cell = GRUCell(inputs, hidden)
        self.head = reads_state(nn.Linear(hidden, classes))

    def forward(self, row: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cell(row))
        return logits


@register_model("gru", summary="recurrent network over the rows of an image, state and gates in 8 bits", size=(8, 8))
def gru(*, classes: int, channels: int, size: Size, hidden: int = 64) -> nn.Module:
    """A GRU of `hidden` values over the rows, then Linear."""
    check_counts("gru", hidden=hidden)
    return OverTime(RowClassifier(channels * size[1], hidden, classes), axis=2, flat=True)
