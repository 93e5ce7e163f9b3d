"""Rows and sums over all processes of a distributed run; in one process they are those given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a scalar over all processes, without a gradient."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def from_all_processes(value: Any) -> list[Any]:
    """The value of each process, such as arrays, of any sizes."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class AllRows:
    """Which rows of a gathered batch are of this process.

    Process r of W holds every W-th sample of a batch, so row i of process r comes after row i of process r - 1: the
    gathered rows are in the order that one process has. `rows`: how many this process has, which may differ.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
        dist.all_gather(counts, torch.tensor([rows], dtype=torch.int64, device=device))
        self._counts = torch.cat(counts)
        self._most = int(self._counts.max())
        self._valid = torch.arange(self._most, device=device)[:, None] < self._counts  # [most, W]

    @property
    def total(self) -> int:
        """Rows of all processes."""
        return int(self._counts.sum())

    @property
    def own(self) -> Tensor:
        """Indices of this process's rows among those gathered, int64."""
        position = self._valid.flatten().cumsum(0).reshape(self._valid.shape) - 1
        rank = dist.get_rank()
        return position[: int(self._counts[rank]), rank]

    def gather(self, rows: Tensor) -> Tensor:
        """[rows, ...] of each process as [rows of all, ...]; each process receives the gradient of its own rows."""
        missing = self._most - rows.shape[0]
        padded = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
        gathered: Tensor = _AllGather.apply(padded.contiguous())  # type: ignore[no-untyped-call]
        return gathered.transpose(0, 1)[self._valid]


class _AllGather(torch.autograd.Function):
    """[n, ...] of each process as [W, n, ...]; backward sums the gradients that all processes have for these rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        own: Tensor = total[dist.get_rank()]
        return own
