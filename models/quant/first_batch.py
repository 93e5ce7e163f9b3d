"""Quantizers whose parameters start from data: from the first batch that is not zero everywhere.

A layer may be called several times in one forward: a shared layer, a cell of a recurrent network. Within the forward
that starts it, a quantizer starts from all of its calls together. A forward is one call of the model that was given to
`quantize`; a layer that is called by itself starts from that one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.models.quant.primitives import is_exporting
from subbyte.models.quant.quantizer import ActivationQuantizer
from subbyte.models.quant.state_dict_versions import Upgraded
from subbyte.models.quant.statistics import SAMPLED, StepOf, largest_over_processes, mean_over_processes

_held: ContextVar[list[ActivationQuantizer] | None] = ContextVar("subbyte_held", default=None)


@contextmanager
def not_starting() -> Iterator[list[ActivationQuantizer]]:
    """Within this context no quantizer starts; the list fills with those that run and never saw a batch before."""
    untouched: list[ActivationQuantizer] = []
    token = _held.set(untouched)
    try:
        yield untouched
    finally:
        _held.reset(token)


class Forward:
    """The forward of a model that runs now: what the quantizers that it starts have seen of it."""

    def __init__(self) -> None:
        self.seen: dict[nn.Module, list[Tensor]] | None = None  # None: no forward runs

    def begin(self, module: nn.Module, args: Any) -> None:
        """A hook before the model's forward."""
        self.seen = {}

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook after the model's forward, also after one that failed."""
        self.seen = None


class FirstBatchQuantizer(Upgraded, ActivationQuantizer):
    """An activation quantizer whose parameters start from the first batch it sees, in training or in eval mode.

    A batch of zeros starts nothing. A subclass gives `rows` and `initialize`. Saved with the model are the buffers
    `called`, whether any batch came, and `initialized`, whether one that was not zero did.
    """

    called: Tensor
    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("called", torch.tensor(False))
        self.register_buffer("initialized", torch.tensor(False))
        # The same as Python bools: reading a buffer would wait for an accelerator, and a tracer cannot.
        self._called = self._started = False
        self.__dict__["_forward"] = Forward()

    @property
    def started(self) -> bool:
        """Whether its parameters come from data; else they are the defaults."""
        if not self._started:  # the buffer may have been copied from another model
            self._started = bool(self.initialized)
        return self._started

    @property
    def ready(self) -> bool:
        self._called = self._called or self.started or bool(self.called)
        return self._called

    def start_in(self, forward: Forward) -> None:
        """Say which forward its calls belong to."""
        self.__dict__["_forward"] = forward

    def rows(self, x: Tensor) -> Tensor:
        """A batch as [rows, elements], each row with a statistic of its own."""
        return x.reshape(1, -1)

    def initialize(self, rows: Tensor, step_of: StepOf | None = None) -> None:
        """Set the parameters from float32 [rows, elements] (statistics over all processes).

        `step_of` chooses the step, where there is one; by default the config does.
        """
        raise NotImplementedError

    def calibrate(self, rows: Tensor, step_of: StepOf) -> None:
        """Start anew from float32 [rows, elements], a sample of all that it will quantize; zeros start nothing."""
        with torch.no_grad():
            if not self._is_called_with_zeros(rows):
                self._initialize(rows, step_of)
        self.forget_constants()

    def see(self, x: Tensor) -> None:
        """Start from x if nothing but zeros was seen before this forward.

        Raises QuantizationError inside an export, or for NaN.
        """
        forward: Forward = self.__dict__["_forward"]
        if self._started and (forward.seen is None or self not in forward.seen):
            return
        if is_exporting() or torch.compiler.is_exporting():
            if not (self._started or self._called):
                raise QuantizationError("an activation quantizer has seen no data; run a batch through the model first")
            return
        untouched = _held.get()
        if untouched is not None:
            if not self.ready:
                untouched.append(self)
            return
        if self.started and (forward.seen is None or self not in forward.seen):
            return
        with torch.no_grad():
            self._start(x.detach().float(), forward)

    def _start(self, x: Tensor, forward: Forward) -> None:
        # The mean is NaN or infinite if any element is, on any process.
        if not bool(torch.isfinite(mean_over_processes(x.abs().mean()))):
            raise QuantizationError("the first batch of an activation quantizer is empty, or holds NaN or infinity")
        if self._is_called_with_zeros(x):
            return
        rows = self.rows(x)
        before = [] if forward.seen is None else forward.seen.setdefault(self, [])
        self._initialize(torch.cat([*before, rows], dim=1) if before else rows)
        if forward.seen is not None:
            before.append(_sample(rows))

    def _is_called_with_zeros(self, x: Tensor) -> bool:
        self._called = True
        self.called.fill_(True)
        return not bool(largest_over_processes(x.abs().amax()))

    def _initialize(self, rows: Tensor, step_of: StepOf | None = None) -> None:
        self.initialize(rows, step_of)
        self.initialized.fill_(True)
        self._started = True

    def upgrade(self, state: dict[str, Any], prefix: str) -> None:
        super().upgrade(state, prefix)
        if f"{prefix}initialized" in state:  # there was no `called`; a layer that had seen only zeros was not exported
            state.setdefault(f"{prefix}called", state[f"{prefix}initialized"].clone())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._called = self._started = False  # as the buffers say


def _sample(rows: Tensor) -> Tensor:
    """A copy of at most about SAMPLED elements of [rows, elements], the extremes among them."""
    stride = rows.shape[1] * rows.shape[0] // SAMPLED
    if stride <= 1:
        return rows.clone()
    return torch.cat([rows[:, ::stride], rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)], dim=1)
