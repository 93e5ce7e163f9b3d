"""Whole batches from a Dataset, in an order that depends on the seed and the epoch alone, shared among processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from subbyte.errors import DataError, UsageError
from subbyte.models.tasks import Episode, Task


class Indices(list[int]):
    """The samples of a batch, and the seed of the random numbers that reading them draws from torch."""

    seed = 0


class EpochBatches(Sampler[list[int]]):
    """The index lists of one epoch: shuffled by (seed, epoch), so that a resumed run sees what an unbroken one sees.

    `batch_size` counts the samples of all processes together; process `rank` of `world` takes every world-th sample of
    each batch. Each batch is given in `parts` lists, one after the other. All processes get the same number of lists.
    `shuffle` drops the samples that fill no whole batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % (world * parts):
            shared = f"{world} processes" + (f" and {parts} parts" if parts > 1 else "")
            raise UsageError(
                f"batch size {batch_size} does not divide among {shared}; use a multiple of {world * parts}."
            )
        self.length, self.batch_size, self.shuffle = length, batch_size, shuffle
        self.seed, self.rank, self.world, self.parts = seed, rank, world, parts
        self.epoch = 0
        self.begin = (0, 0)  # (epoch, list) that a resumed run goes on with

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def go_on(self, epoch: int, index: int) -> None:
        """Leave out the first `index` lists of `epoch`, which a run that is resumed has seen."""
        self.epoch, self.begin = epoch, (epoch, index)

    def __len__(self) -> int:
        if self.shuffle:
            return max(1, self.length // self.batch_size) * self.parts
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
            order = order[: len(self) // self.parts * self.batch_size]
        else:
            order = np.arange(self.length)
        done = self.begin[1] if self.begin[0] == self.epoch else 0
        for index, batch in enumerate(np.array_split(order, len(self))[done:], done):
            indices = Indices(batch[self.rank :: self.world].tolist())
            indices.seed = seed_of(self.seed, self.epoch * len(self) + index, self.rank)
            yield indices


class Episodes(EpochBatches):
    """Index lists that are episodes: classes drawn by (seed, epoch, number), samples class by class.

    `labels` int64 [N] of the training set. Every process takes episodes of its own, as many in an epoch as use about
    each sample once. Raises DataError where too few classes have enough samples.
    """

    def __init__(
        self, labels: npt.NDArray[np.int64], episode: Episode, *, seed: int = 0, rank: int = 0, world: int = 1,
        parts: int = 1,
    ) -> None:  # fmt: skip
        size = episode.classes * episode.per_class
        super().__init__(
            len(labels), size * world * parts, shuffle=True, seed=seed, rank=rank, world=world, parts=parts
        )
        members = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
        self.episode, self.members = episode, [one for one in members if len(one) >= episode.per_class]
        if len(self.members) < episode.classes:
            raise DataError(
                f"an episode has {episode.per_class} samples of {episode.classes} classes, but {len(self.members)} of "
                f"{len(members)} classes have so many: take fewer classes or samples, or other data."
            )

    def __iter__(self) -> Iterator[list[int]]:
        done = self.begin[1] if self.begin[0] == self.epoch else 0
        for index in range(done, len(self)):
            rng = np.random.default_rng((self.seed, self.epoch, index * self.world + self.rank))
            chosen = rng.choice(len(self.members), self.episode.classes, replace=False)
            drawn = [rng.choice(self.members[one], self.episode.per_class, replace=False) for one in chosen]
            indices = Indices(np.concatenate(drawn).tolist())
            indices.seed = seed_of(self.seed, self.epoch * len(self) + index, self.rank)
            yield indices


def labels_of(dataset: Dataset[Any]) -> npt.NDArray[np.int64]:
    """The label of every sample, int64 [N]: what the Dataset has as `labels`, else read sample by sample."""
    labels = getattr(dataset, "labels", None)
    if labels is None:
        labels = [int(dataset[index][1]) for index in range(len(dataset))]  # type: ignore[arg-type]
    return np.asarray(labels, np.int64)


def training_order(
    dataset: Dataset[Any], task: Task, batch_size: int, *, seed: int, rank: int = 0, world: int = 1, parts: int = 1
) -> EpochBatches:
    """The index lists of training: episodes where the task has them, else shuffled samples, in batches as asked for.

    A batch is at most the whole set.
    """
    if task.episode is not None:
        return Episodes(labels_of(dataset), task.episode, seed=seed, rank=rank, world=world, parts=parts)
    length = len(dataset)  # type: ignore[arg-type]
    batch_size = min(batch_size, length - length % (world * parts))
    return EpochBatches(length, batch_size, shuffle=True, seed=seed, rank=rank, world=world, parts=parts)


class Batched(Dataset[Any]):
    """A Dataset indexed by lists: in one step where the Dataset offers `batch(indices)`, else sample by sample.

    Random numbers that it draws from torch depend on the batch alone, whichever process reads it. `numbered` adds the
    indices, int64 [n], to each batch.
    """

    def __init__(self, dataset: Dataset[Any], numbered: bool = False) -> None:
        self.dataset, self.numbered = dataset, numbered

    def __getitem__(self, indices: Sequence[int]) -> Any:
        batch = self._read(indices)
        return (*batch, torch.tensor(indices)) if self.numbered else batch

    def _read(self, indices: Sequence[int]) -> Any:
        fetch = getattr(self.dataset, "batch", None)
        if fetch is not None:
            return fetch(list(indices))
        with torch.random.fork_rng(devices=[]):
            if isinstance(indices, Indices):
                seed_torch(indices.seed)
            return default_collate([self.dataset[index] for index in indices])


def seed_of(seed: int, batch: int, rank: int) -> int:
    """The seed of random numbers of a batch, counted from the start of the run, in one process."""
    return ((seed * 1_000_003 + batch) * 997 + rank) % (1 << 63)


def seed_torch(seed: int, device: torch.device | None = None) -> None:
    """Seed torch's random numbers of the CPU, and those of the accelerators where `device` is one.

    torch.manual_seed also queues a call, with a stack trace, for each kind of accelerator that is not in use: 0.3 ms.
    """
    if device is None or device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def batch_loader(
    dataset: Dataset[Any], order: EpochBatches, workers: int = 0, *, numbered: bool = False
) -> DataLoader[Any]:
    """A DataLoader of (inputs [n, ...], targets [n, ...]), `numbered` with the samples' numbers int64 [n].

    `workers` processes read ahead.
    """
    batches = Batched(dataset, numbered)
    return DataLoader(batches, batch_size=None, sampler=order, num_workers=workers, persistent_workers=workers > 0)
