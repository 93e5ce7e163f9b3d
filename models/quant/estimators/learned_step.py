"""Integers with a learnable step: LSQ. Esser et al., "Learned Step Size Quantization", 2020.

value = code x step, code = clip(round(x / step), low, high). The gradient of the step is scaled by
1 / sqrt(n high), where n elements share the step. The paper's parameter is the step
itself, which an update may make negative; ours is positive, and its gradient is scaled by 1 / sqrt(n) in all:
positive_step.py says why, with what the paper's scale did.

The paper starts at step = 2 mean|x| / sqrt(high) (initial="mean"; 4 instead of 2 for unsigned codes, as OFQ and TBT
do). At 8 bits that leaves most codes unused: the mean |x| gets code 5 of 127. We start at the step of least squared
error (initial="error"), as Bhalgat et al., "LSQ+: Improving low-bit quantization through learnable offsets and better
initialization", 2020, do for activations. On a float resnet8 for 8x8 digits, quantized to int8 without training, it
brings the relative error of the logits from 5.7% to 1.1%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.formats import Format, Granularity, PerChannel, PerGroup, PerTensor
from subbyte.formats.integer import INT, UINT
from subbyte.models.quant import primitives
from subbyte.models.quant.first_batch import FirstBatchQuantizer
from subbyte.models.quant.positive_step import PositiveStep
from subbyte.models.quant.quantizer import ActivationQuantizer, WeightQuantizer
from subbyte.models.quant.statistics import (
    StepOf,
    least_error_step,
    mean_over_processes,
    mean_size,
    parts,
    smallest_over_processes,
)

PER_TENSOR = PerTensor()


# ---- gradient ----


class LearnedStepFunction(torch.autograd.Function):
    """clip(round(x / s), low, high) * s. Esser et al., "Learned Step Size Quantization", 2020.

    With v = x / s: d/dx = 1 where low <= v <= high, else 0; d/ds = low or high where v is beyond them, else round(v)
    - v, times gamma. The step that comes in is positive and has x's shape (or broadcasts).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: Tensor, high: Tensor, gamma: Tensor) -> Tensor:
        scaled = x * (1.0 / step)
        ctx.save_for_backward(scaled, low, high, gamma)
        ctx.step_shape = step.shape
        return torch.round(scaled).clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        # Activations are large: few passes over them, few temporaries, laid out as the gradient is. `inside` is 0 or
        # 1 in float32, since torch copies a bool before it multiplies. Bounds are integers: round(clipped) keeps them.
        scaled, low, high, gamma = ctx.saved_tensors
        grad = grads[0]
        if scaled.stride() != grad.stride():
            scaled = torch.empty_like(grad).copy_(scaled)
        clipped = torch.clamp(scaled, low, high)
        inside = clipped.clone().eq_(scaled)
        slope = torch.round(clipped).addcmul_(clipped, inside, value=-1)
        return inside.mul_(grad), slope.mul_(grad).mul_(gamma).sum_to_size(ctx.step_shape), None, None, None


def learned_step(x: Tensor, step: Tensor, low: Tensor, high: Tensor, sharing: int) -> Tensor:
    """Fake-quantize with a learnable step; gamma = 1 / sqrt(sharing * high), `sharing` elements have one step."""
    gamma = torch.rsqrt(high * sharing)
    result: Tensor = LearnedStepFunction.apply(x, step, low, high, gamma)  # type: ignore[no-untyped-call]
    return result


# ---- quantizers ----


@dataclass(frozen=True)
class LearnedStep:
    """Signed integers (activations: unsigned where the first batch has no negative value) of 2 to 8 bits."""

    bits: int = 8
    granularity: Granularity = PER_TENSOR
    initial: Literal["error", "mean"] = "error"

    def __post_init__(self) -> None:
        if self.bits not in INT:
            raise QuantizationError(f"LearnedStep has 2 to 8 bits, got {self.bits}")
        if self.initial not in ("error", "mean"):
            raise QuantizationError(f"LearnedStep starts from the least 'error' or the 'mean', got '{self.initial}'")
        if self.granularity not in (PER_TENSOR, PerChannel(0)) and not (
            isinstance(self.granularity, PerGroup) and self.granularity.axis == -1
        ):
            raise QuantizationError(
                f"LearnedStep has one step per tensor, per output channel (axis 0) or per group (axis -1), "
                f"got {self.granularity}"
            )

    @property
    def format_name(self) -> str:
        return INT[self.bits].name

    def weight_quantizer(self, weight: Tensor) -> WeightQuantizer:
        return LearnedStepWeight(weight, self.bits, self.granularity, self.initial)

    def activation_quantizer(self, layer: nn.Module) -> ActivationQuantizer:
        if not isinstance(self.granularity, PerTensor):
            raise QuantizationError(f"activations have one learned step per tensor, got {self.granularity}")
        return LearnedStepActivation(self.bits, self.initial)


class LearnedStepWeight(PositiveStep, WeightQuantizer):
    """Signed codes of a weight; `step` has granularity.scale_shape((rows, depth))."""

    def __init__(self, weight: Tensor, bits: int, granularity: Granularity, initial: str) -> None:
        super().__init__()
        self.format = INT[bits]
        self.granularity = granularity
        self.low, self.high = -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
        self.attach(weight)
        depth = weight[0].numel()
        sharing = {"tensor": weight.numel(), "channel": depth, "group": min(getattr(granularity, "size", 0), depth)}
        self.sharing = sharing[granularity.name]
        if initial == "mean":
            step = 2 * mean_size(weight.detach(), granularity) / math.sqrt(self.high)
        else:
            step = self._steps(weight.detach(), least_error_step)
        self.make_step(_of_zeros(step, depth, self.high))

    def _steps(self, w: Tensor, step_of: StepOf) -> Tensor:
        step = step_of(parts(w, self.granularity), self.low, self.high)
        return step.reshape(self.granularity.scale_shape((w.shape[0], w[0].numel())))

    def calibrate(self, step_of: StepOf) -> None:
        w = self.latent().detach()
        with torch.no_grad():
            self.start_step(_of_zeros(self._steps(w, step_of), w[0].numel(), self.high))

    def unit(self) -> Tensor:
        return self.first_step * self.high

    def largest_code(self) -> Tensor:
        return self.first_step.new_tensor(self.high)

    def scale(self, w: Tensor) -> Tensor:
        return self.step

    def levels(self, w: Tensor, scale: Tensor) -> Tensor:
        return torch.clamp(torch.round(w * (1.0 / scale)), self.low, self.high)

    def fake_quantize(self, w: Tensor) -> Tensor:
        low, high = w.new_tensor(self.low), w.new_tensor(self.high)
        return learned_step(w, self.expand(self.step, w), low, high, self.sharing)


def _of_zeros(step: Tensor, depth: int, high: float) -> Tensor:
    """Steps where the weights are all zero say nothing: the others' mean, else that of torch's default weights."""
    known = step[step > 0]
    default = known.mean() if known.numel() else step.new_tensor(1 / (math.sqrt(depth) * high))
    return torch.where(step > 0, step, default)


class LearnedStepActivation(PositiveStep, FirstBatchQuantizer):
    """Codes of an activation tensor with one step; the first batch, in any mode, gives the sign and the first step."""

    low: Tensor
    high: Tensor
    inverse_step: Tensor

    def __init__(self, bits: int, initial: str = "error") -> None:
        super().__init__()
        self.bits, self.initial = bits, initial
        self.make_step(torch.tensor(1.0))
        self.register_buffer("low", torch.tensor(-float(2 ** (bits - 1))))
        self.register_buffer("high", torch.tensor(float(2 ** (bits - 1) - 1)))

    @property
    def signed(self) -> bool:
        """Whether codes may be negative."""
        return bool(self.low < 0)

    @property
    def format(self) -> Format:
        """int<b>, or uint<b> where the first batch had no negative value."""
        return (INT if self.signed else UINT)[self.bits]

    def initialize(self, rows: Tensor, step_of: StepOf | None = None) -> None:
        """Choose sign and step."""
        signed = float(smallest_over_processes(rows.min())) < 0
        low, high = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if signed else (0, 2**self.bits - 1)
        self.low.fill_(float(low))
        self.high.fill_(float(high))
        if step_of is not None:
            self.start_step(step_of(rows, low, high)[0])
        elif self.initial == "mean":
            mean = float(mean_over_processes(rows.abs().mean()))
            self.start_step(mean * (2 if signed else 4) / math.sqrt(high))
        else:
            self.start_step(float(least_error_step(rows, low, high)))

    def unit(self) -> Tensor:
        return torch.ones_like(self.first_step)

    def largest_code(self) -> Tensor:
        return self.high

    def compute_constants(self) -> None:
        self.inverse_step = 1.0 / self.scales()

    def scales(self) -> Tensor:
        with torch.no_grad():
            return self.step

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self.see(x)
        self.ensure_constants()
        return primitives.quantize(x, self.inverse_step, self.low, self.high), None

    def fake_quantize(self, x: Tensor) -> Tensor:
        self.see(x)
        # Copies, for the backward pass: a later call within the first forward may change the bounds.
        return learned_step(x, self.step, self.low.clone(), self.high.clone(), x.numel())
