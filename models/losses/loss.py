"""What a loss is: its inputs, its output, its register, and the few operations that all losses share.

    loss(outputs, targets, *, weight=None, mask=None, ids=None, step=None, reduction="mean") -> LossOutput

To add a loss: write a frozen dataclass with such a `__call__`, decorate it with `@register_loss("name", needs=...,
summary=...)`, and import its file in `losses/__init__.py`. See docs/add-a-loss.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from subbyte.errors import UnknownNameError, UsageError
from subbyte.models.options import check_options

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Outputs:
    """What a network gave for a batch of N samples; only what a loss `needs` has to be there."""

    logits: Tensor | None = None  # [N, C]
    emb: Tensor | None = None  # [N, D]
    teacher: Outputs | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """What it should have given."""

    label: Tensor | None = None  # int64 [N]; a negative label leaves the sample out
    soft: Tensor | None = None  # [N, C], rows sum to 1; comes before `label` where both are given
    score: Tensor | None = None  # [N]


@dataclass(frozen=True)
class LossOutput:
    """`value`: reduced (a scalar, or [N] for "none"); `per_sample`: [N], without weights; `logs`: detached scalars."""

    value: Tensor
    per_sample: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Loss(Protocol):
    """Any registered loss."""

    def __call__(
        self,
        outputs: Outputs,
        targets: Targets,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        ids: Tensor | None = None,
        step: int | None = None,
        reduction: Reduction = "mean",
    ) -> LossOutput: ...


# ---- the register ----


@dataclass(frozen=True)
class LossEntry:
    """A loss by name: what it needs of outputs and targets, e.g. {"logits", "label", "teacher"}, and how it is made."""

    name: str
    summary: str
    needs: frozenset[str]
    build: Callable[..., Loss]

    @property
    def options(self) -> dict[str, Any]:
        """Hyper-parameters and their defaults."""
        if not dataclasses.is_dataclass(self.build):
            return {}
        return {option.name: option.default for option in dataclasses.fields(self.build)}


_LOSSES: dict[str, LossEntry] = {}
_Built = TypeVar("_Built", bound=Callable[..., Loss])


def register_loss(name: str, *, needs: set[str], summary: str) -> Callable[[_Built], _Built]:
    """Register the decorated frozen dataclass, whose fields are the loss's hyper-parameters, under `name`."""
    if name in _LOSSES:
        raise UsageError(f"loss '{name}' is registered already; choose another name.")

    def register(build: _Built) -> _Built:
        _LOSSES[name] = LossEntry(name, summary, frozenset(needs), build)
        return build

    return register


def get_loss(name: str) -> LossEntry:
    """The entry of loss `name`; raises `UnknownNameError` with the nearest name."""
    if name not in _LOSSES:
        raise UnknownNameError("loss", name, _LOSSES)
    return _LOSSES[name]


def create_loss(name: str, **options: Any) -> Loss:
    """Make the loss `name` with its hyper-parameters; raises `UsageError` for one that it does not have.

    Also for a value of another type than the option's annotation.
    """
    entry = get_loss(name)
    check_options(f"loss '{name}'", entry.build, entry.options, options)
    return entry.build(**options)


def list_losses() -> list[str]:
    """Names of all losses, sorted."""
    return sorted(_LOSSES)


# ---- what losses share ----


def required(value: Tensor | None, loss: str, name: str) -> Tensor:
    """`value`, or a `UsageError` that says which input the loss misses."""
    if value is None:
        raise UsageError(f"loss '{loss}' needs `{name}`, which was not given.")
    return value


def selection(mask: Tensor | None, label: Tensor | None, like: Tensor) -> Tensor:
    """Bool [N]: the samples that count, which are those in `mask` whose label is not negative."""
    chosen = torch.ones(like.shape[0], dtype=torch.bool, device=like.device)
    if label is not None:
        chosen = chosen & (label >= 0)
    return chosen if mask is None else chosen & mask.bool()


def keep_selected(values: Tensor, chosen: Tensor) -> Tensor:
    """`values` with 0 in the rows that are not chosen, so that neither they nor their gradients reach the loss."""
    rows = chosen.reshape(-1, *([1] * (values.dim() - 1)))
    return torch.where(rows, values, torch.zeros_like(values))


def reduce_samples(per_sample: Tensor, chosen: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    """Weighted mean sum(w l) / sum(w), weighted sum, or weighted [N]; 0 with a graph where nothing is chosen."""
    weighted = per_sample if weight is None else per_sample * weight
    weighted = keep_selected(weighted, chosen)
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    if reduction != "mean":
        raise UsageError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
    shares = torch.ones_like(per_sample) if weight is None else weight.to(per_sample)
    total = keep_selected(shares, chosen).sum()
    return weighted.sum() / torch.where(total > 0, total, torch.ones_like(total))
