"""Models with state whose quantizers have seen data, without training, and their steps in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from subbyte.models.layers.streaming_convolution import StreamingConv1d
from subbyte.models.quant import get_scheme, quantize
from subbyte.models.state import named_states, reset_states
from subbyte.models.zoo import create

Array = npt.NDArray[Any]


def recurrent_step(scheme: str, hidden: int = 16, inputs: int = 8, **options: Any) -> nn.Module:
    """One step of the zoo's recurrent model, in eval mode: x [batch, inputs] -> logits [batch, 10]."""
    torch.manual_seed(0)
    model = create("gru", channels=1, size=(8, inputs), hidden=hidden)
    images = torch.rand(64, 1, 8, inputs)
    quantize(model, get_scheme(scheme, **options), example=images[:4])
    for _ in range(2):
        model(images)
    step: nn.Module = model.eval().get_submodule("step")
    return step


def keyword_spotter(scheme: str) -> nn.Sequential:
    """Streaming convolutions in eval mode: x [batch, 10, t] -> logits [batch, 12, t]; states '0.past', '2.past'."""
    torch.manual_seed(0)
    between = nn.Identity if scheme == "binary" else nn.ReLU  # the sign of what is never negative is always +1
    model = nn.Sequential(
        *(StreamingConv1d(nn.Conv1d(10, 32, 9)), between()),
        *(StreamingConv1d(nn.Conv1d(32, 32, 5, dilation=2)), between()),
        nn.Conv1d(32, 12, 1),
    )
    quantize(model, get_scheme(scheme))
    model(torch.randn(4, 10, 50))
    reset_states(model.eval())
    return model


def torch_steps(step: nn.Module, xs: Array) -> dict[str, Array]:
    """The output ("output") and the states by path of each step on xs [steps, batch, ...], from the initial states."""
    reset_states(step, xs.shape[1])
    made: dict[str, list[Array]] = {}
    with torch.no_grad():
        for x in xs:
            values = {"output": step(torch.from_numpy(x)), **named_states(step)}
            for name, value in values.items():
                made.setdefault(name, []).append(value.numpy().copy())
    reset_states(step)
    return {name: np.stack(values) for name, values in made.items()}
