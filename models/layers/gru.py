"""A gated recurrent unit in integers: quantized products, gates by table look-up, a state of 8-bit codes.

    r, z = sigmoid(W x + U h)                   codes of 1/256
    n = tanh(V x + r * (T h))                   codes of 1/128
    h' = n + z * (h - n)                        codes of 1/128; the difference and the product are exact integers

Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", 2014; the
reset gate is applied after the product, as in torch.nn.GRU. With `quantize(model, scheme)` the four products get the
scheme's weights; those of h read the codes of the state as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.quant.estimators.fixed_step import Codes, FixedStep
from subbyte.models.quant.lookup import Lookup
from subbyte.models.state import register_state

GATE, STATE = 2.0**-8, 2.0**-7  # steps of the codes


def gate(x: Tensor) -> Tensor:
    """sigmoid in units of a gate's step."""
    return torch.sigmoid(x) / GATE


def candidate(x: Tensor) -> Tensor:
    """tanh in units of the state's step."""
    return torch.tanh(x) / STATE


class GRUCell(nn.Module):
    """One step: x float32 [batch, inputs] -> h float32 [batch, hidden] in [-1, 1); the state is `h`."""

    h: Tensor

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        if inputs < 1 or hidden < 1:
            raise UsageError(f"a GRU needs at least one input and one hidden value, got {inputs} and {hidden}")
        self.hidden = hidden
        self.input_gates = nn.Linear(inputs, 2 * hidden)
        self.input_candidate = nn.Linear(inputs, hidden)
        self.hidden_gates = reads_state(nn.Linear(hidden, 2 * hidden, bias=False))
        self.hidden_candidate = reads_state(nn.Linear(hidden, hidden))
        self.gates, self.gate_codes = Lookup(gate), Codes(signed=False)
        self.candidate, self.candidate_codes = Lookup(candidate), Codes()
        self.state_codes = Codes()
        register_state(self, "h", torch.zeros(1, hidden))

    def forward(self, x: Tensor) -> Tensor:
        before = self.h
        real = before * STATE
        gates = self.gate_codes(self.gates(self.input_gates(x) + self.hidden_gates(real)))
        reset, update = gates[..., : self.hidden], gates[..., self.hidden :]
        inner = self.input_candidate(x) + (reset * GATE) * self.hidden_candidate(real)
        new = self.candidate_codes(self.candidate(inner))
        self.h = self.state_codes(new + update * (before - new) * GATE)
        return self.h * STATE


def reads_state(layer: nn.Linear) -> nn.Linear:
    """A Linear whose input is the value of a state: quantized, it keeps the state's codes."""
    layer.__dict__["input_quantizer"] = FixedStep(STATE)
    return layer
