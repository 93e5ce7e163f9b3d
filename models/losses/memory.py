"""Memory of a loss: what it keeps from step to step, as buffers that are saved with the training state.

    @loss("moco", memory={"queue": QueueOf("teacher.embeddings", length="length")}, ...)
    def momentum_contrast(outputs, targets, queue: Queue, length: Count = 4096, ...): queue.rows; queue.push(keys)

A declaration says of which output the rows are; the buffers are made when an example of the outputs is known. A loss
reads what earlier steps wrote. What it writes is kept after the step in training, on every process alike, and dropped
in evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.losses.processes import AllRows, world_size


class Memory(nn.Module):
    """Base: writes of a step are collected, then kept or dropped by the objective."""

    def commit(self, *, gathered: bool) -> None:
        """Keep what the step wrote; `gathered`: its rows are those of all processes already."""
        raise NotImplementedError

    def drop(self) -> None:
        """Forget what the step wrote."""
        raise NotImplementedError


class Queue(Memory):
    """The last `length` rows that were pushed, oldest replaced first. He et al., "Momentum Contrast ...", 2020."""

    kept: Tensor
    pushed: Tensor

    def __init__(self, length: int, row: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(length, *row, dtype=dtype, device=device))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64, device=device))
        self._pending: list[Tensor] = []

    @property
    def rows(self) -> Tensor:
        """A copy of the rows pushed so far, [M, ...], M <= length; in no order; 0 rows at first."""
        return self.kept[: int(self.pushed.clamp_max(len(self.kept)))].clone()

    def push(self, rows: Tensor) -> None:
        """Append rows [n, ...] after this step."""
        self._pending.append(rows.detach().to(self.kept.dtype))

    def commit(self, *, gathered: bool) -> None:
        """Write the rows of all processes."""
        rows = torch.cat([self.kept[:0], *self._pending])
        self.drop()
        if world_size() > 1 and not gathered:
            rows = AllRows(len(rows), rows.device).gather(rows)
        length = len(self.kept)
        start = int(self.pushed) + max(0, len(rows) - length)
        places = torch.arange(start, int(self.pushed) + len(rows), device=rows.device) % length
        self.kept.index_copy_(0, places, rows[-length:])
        self.pushed += len(rows)

    def drop(self) -> None:
        """Forget what was pushed in this step."""
        self._pending = []


class Table(Memory):
    """One row for each sample of the training set, by its number."""

    kept: Tensor
    written: Tensor

    def __init__(self, samples: int, row: torch.Size, initial: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("kept", torch.full((samples, *row), initial, dtype=dtype, device=device))
        self.register_buffer("written", torch.zeros(samples, dtype=torch.bool, device=device))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def read(self, ids: Tensor) -> Tensor:
        """Rows [n, ...] of samples [n]; the initial value where none was written."""
        return self.kept[self._checked(ids)]

    def was_written(self, ids: Tensor) -> Tensor:
        """Bool [n]: whether a row of the sample was written."""
        return self.written[self._checked(ids)]

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """Replace the rows of samples [n] after this step."""
        self._pending.append((self._checked(ids), rows.detach().to(self.kept.dtype)))

    def commit(self, *, gathered: bool) -> None:
        """Write the rows of all processes."""
        ids = torch.cat([torch.empty(0, dtype=torch.int64, device=self.kept.device), *(i for i, _ in self._pending)])
        rows = torch.cat([self.kept[:0], *(r for _, r in self._pending)])
        self.drop()
        if world_size() > 1 and not gathered:
            everyone = AllRows(len(ids), ids.device)
            ids, rows = everyone.gather(ids), everyone.gather(rows)
        self.kept.index_copy_(0, ids, rows)
        self.written[ids] = True

    def drop(self) -> None:
        """Forget what was written in this step."""
        self._pending = []

    def _checked(self, ids: Tensor) -> Tensor:
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.kept):
            raise UsageError(
                f"sample numbers are {int(ids.min())} to {int(ids.max())}, the table of the loss has "
                f"{len(self.kept)} rows: number the samples from 0 to {len(self.kept) - 1}."
            )
        return ids


@dataclass(frozen=True)
class QueueOf:
    """Declares a `Queue` of vectors like output `of` (its last axis), as long as the option `length` says."""

    of: str
    length: str

    def make(self, example: Tensor, options: Mapping[str, Any], samples: int | None) -> Queue:
        """The queue, empty."""
        return Queue(options[self.length], example.shape[-1:], _at_least_single(example.dtype), example.device)


@dataclass(frozen=True)
class TableOf:
    """Declares a `Table` of vectors like output `of` (its last axis), or of scalars; rows begin with `initial`."""

    of: str
    scalar: bool = False
    initial: float = 0.0

    def make(self, example: Tensor, options: Mapping[str, Any], samples: int | None) -> Table:
        """The table, unwritten; raises UsageError where the number of samples is unknown."""
        if samples is None:
            raise UsageError("a loss with a table needs the number of training samples; give objective.prepare it.")
        row = torch.Size() if self.scalar else example.shape[-1:]
        return Table(samples, row, self.initial, _at_least_single(example.dtype), example.device)


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
