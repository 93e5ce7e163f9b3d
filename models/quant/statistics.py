"""Means of weights and batches that do not depend on the number of threads, or on which process saw which batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from subbyte.formats import Granularity, PerChannel, PerGroup


def mean_size(w: Tensor, granularity: Granularity) -> Tensor:
    """mean |w| over each part that has one scale, float32 of granularity.scale_shape((rows, depth)).

    Summed in float64, so that the rounded result is the same however many threads shared the work.
    """
    matrix = w.abs().flatten(1)
    if matrix.device.type != "mps":  # which has no float64
        matrix = matrix.double()
    if isinstance(granularity, PerGroup):
        size, depth = granularity.size, matrix.shape[1]
        groups = -(-depth // size)
        padded = torch.nn.functional.pad(matrix, (0, groups * size - depth)).reshape(len(matrix), groups, size)
        counts = padded.new_full((groups,), size)
        counts[-1] = depth - (groups - 1) * size
        return (padded.sum(dim=2) / counts).float()
    if isinstance(granularity, PerChannel):
        return matrix.mean(dim=1).float()
    return matrix.mean().float()


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
