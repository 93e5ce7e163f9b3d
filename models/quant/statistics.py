"""Where scales start or come from: means and least errors, alike on every process of a distributed run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from subbyte.formats import Granularity, PerChannel, PerGroup

# (x [rows, elements], smallest code, largest code) -> a step for each row [rows]; 0 for a row of zeros
StepOf: TypeAlias = Callable[[Tensor, float, float], Tensor]

SMALLEST_STEP = 1e-5  # a step or scale is never smaller, so that x / step stays finite
SHRINK = tuple(1 - 0.05 * i for i in range(15))  # of the range, tried for the least error: 1.0 down to 0.3
SAMPLED = 1 << 18  # elements of a batch that are enough to judge a step by


def parts(w: Tensor, granularity: Granularity) -> Tensor:
    """[parts, elements]: the elements that share each scale, zeros after a last group that is shorter."""
    if isinstance(granularity, PerGroup):
        matrix = w.flatten(1)
        groups = -(-matrix.shape[1] // granularity.size)
        padded = torch.nn.functional.pad(matrix, (0, groups * granularity.size - matrix.shape[1]))
        return padded.reshape(-1, granularity.size)
    return w.flatten(1) if isinstance(granularity, PerChannel) else w.reshape(1, -1)


def mean_size(w: Tensor, granularity: Granularity) -> Tensor:
    """mean |w| over each part that has one scale, float32 of granularity.scale_shape((rows, depth)).

    Summed in float64, so that the rounded result is the same however many threads shared the work.
    """
    size = w.abs() if w.device.type == "mps" else w.abs().double()  # mps has no float64
    sums = parts(size, granularity).sum(dim=1)
    counts = parts(torch.ones_like(size), granularity).sum(dim=1) if isinstance(granularity, PerGroup) else None
    means = sums / (w.numel() // len(sums) if counts is None else counts)
    return means.float().reshape(granularity.scale_shape((w.shape[0], w[0].numel())))


def least_error_step(x: Tensor, low: float, high: float) -> Tensor:
    """The step of each row of x [parts, elements] with the least squared error.

    Tried are steps that put the largest code at 0.3 to 1 of the largest |x|. Over all processes of a distributed run.
    Rows that are zero get the step 0.
    """
    largest = largest_over_processes(x.abs().amax(dim=1, keepdim=True))
    sample = x[:, :: max(1, x.shape[1] // SAMPLED)]
    steps = torch.stack([largest[:, 0] * (shrink / high) for shrink in SHRINK])
    errors = torch.stack([_squared_error(sample, step.unsqueeze(1), low, high) for step in steps])
    best = mean_over_processes(errors).argmin(dim=0, keepdim=True)
    return steps.gather(0, best)[0]


def _squared_error(x: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    inverse = torch.where(step > 0, 1 / step, 0)
    return (torch.clamp(torch.round(x * inverse), low, high) * step - x).square().sum(dim=1)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a statistic over all processes of a distributed run, so that their quantizers start alike."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value


def smallest_over_processes(value: Tensor) -> Tensor:
    """The smallest of a statistic over all processes of a distributed run."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return value


def largest_over_processes(value: Tensor) -> Tensor:
    """The largest of a statistic over all processes of a distributed run."""
    return -smallest_over_processes(-value)
