"""Whole batches from a Dataset, in an order that depends on the seed and the epoch alone, shared among processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from subbyte.errors import UsageError


class EpochBatches(Sampler[list[int]]):
    """The index lists of one epoch: shuffled by (seed, epoch), so that a resumed run sees what an unbroken one sees.

    `batch_size` counts the samples of all processes together; process `rank` of `world` takes every world-th sample of
    each batch. All processes get the same number of batches. `shuffle` drops the samples that fill no whole batch.
    """

    def __init__(
        self, length: int, batch_size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise UsageError(
                f"batch size {batch_size} does not divide among {world} processes; use a multiple of {world}."
            )
        self.length, self.batch_size, self.shuffle = length, batch_size, shuffle
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return max(1, self.length // self.batch_size)
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
            order = order[: len(self) * self.batch_size]
        else:
            order = np.arange(self.length)
        for batch in np.array_split(order, len(self)):
            yield batch[self.rank :: self.world].tolist()


class Batched(Dataset[Any]):
    """A Dataset indexed by lists: in one step where the Dataset offers `batch(indices)`, else sample by sample."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: Sequence[int]) -> Any:
        fetch = getattr(self.dataset, "batch", None)
        return fetch(indices) if fetch is not None else default_collate([self.dataset[index] for index in indices])


def batch_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> DataLoader[Any]:
    """A DataLoader of (images float32 [n, C, H, W], labels int64 [n]); `workers` processes read ahead."""
    length = len(dataset)  # type: ignore[arg-type]
    order = EpochBatches(length, batch_size, shuffle=shuffle, seed=seed, rank=rank, world=world)
    return DataLoader(
        Batched(dataset), batch_size=None, sampler=order, num_workers=workers, persistent_workers=workers > 0
    )
