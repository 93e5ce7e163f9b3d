"""The quantizers of a model while it trains: told how far training is, held from some point on, and observed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.quant import quantized_layers, set_progress
from subbyte.models.quant.positive_step import PositiveStep
from subbyte.models.quant.quantizer import ActivationQuantizer, WeightQuantizer


class Quantizers:
    """Call `begin_step` and `end_step` around a step of the optimizer, and `report` from time to time.

    From the share `freeze` of training on, the quantizers' own parameters (learned steps, thresholds) keep their
    values, under any optimizer. Raises UsageError for a share that is not in [0, 1].
    """

    def __init__(self, model: nn.Module, freeze: float | None = None) -> None:
        if freeze is not None and not 0 <= freeze <= 1:
            raise UsageError(f"freeze is a share of the steps in [0, 1], got {freeze}.")
        self.model, self.freeze = model, freeze
        self._held: list[tuple[nn.Parameter, Tensor]] = []
        self._codes: dict[str, Tensor] = {}
        self._moves: dict[str, Tensor] = {}

    def begin_step(self, done: float) -> None:
        """Tell quantizers the share of training that is done, and hold their parameters if it is time to."""
        done = min(1.0, max(0.0, done))
        set_progress(self.model, done)
        if self.freeze is not None and done >= self.freeze and not self._held:
            self._held = [(parameter, parameter.detach().clone()) for parameter in own_parameters(self.model)]

    @torch.no_grad()
    def end_step(self) -> None:
        """Give the parameters that are held their values again."""
        for parameter, value in self._held:
            parameter.copy_(value)

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """What happened since the last report: shares of quantized weights, a ratio of learned steps, where there are.

        flipped: share of the weights whose code is another one; oscillating: share of the weights whose code moves
        opposite to its last move (Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", 2022, eq. 6,
        counted per report, not per step); step_ratio: geometric mean of learned steps over those they began with.
        """
        layers = quantized_layers(self.model).items()
        codes = {name: _codes(layer.weight_quantizer) for name, layer in layers if layer.weight_quantizer is not None}
        row = self._moved(codes) if codes else {}
        steps = [module for module in self.model.modules() if isinstance(module, PositiveStep)]
        if steps:
            ratios = torch.cat([(one.step / one.first_step).log().flatten().cpu() for one in steps])
            row["step_ratio"] = float(ratios.mean().exp())
        return row

    def _moved(self, codes: dict[str, Tensor]) -> dict[str, float]:
        """The shares of the weights, whose codes are those now, that flipped and that oscillate."""
        flipped = oscillating = count = 0
        for name, now in codes.items():
            before = self._codes.get(name, now).to(now.device)
            move = torch.sign(now - before).to(torch.int8)
            last = self._moves.get(name, torch.zeros_like(move)).to(now.device)
            flipped += int((move != 0).sum())
            oscillating += int((move * last < 0).sum())
            count += now.numel()
            self._moves[name] = torch.where(move != 0, move, last)
        self._codes = codes
        return {"flipped": flipped / count, "oscillating": oscillating / count}

    def state_dict(self) -> dict[str, Any]:
        """What is kept to resume."""
        return {"codes": self._codes, "moves": self._moves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was kept."""
        self._codes, self._moves = dict(state["codes"]), dict(state["moves"])


def own_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What quantizers learn beside the weights: steps and thresholds."""
    quantizers = [m for m in model.modules() if isinstance(m, (WeightQuantizer, ActivationQuantizer))]
    return list(dict.fromkeys(parameter for one in quantizers for parameter in one.parameters()))


def _codes(quantizer: WeightQuantizer) -> Tensor:
    return quantizer.codes(quantizer.latent().detach()).to(torch.int16)
