"""A batch as the rows that a loss function sees: positions flattened, those that do not count left out.

The positions of a batch are the axes of the target that a loss needs: [N] for a class per sample, [N, T] for a class
per token. What is left out is removed before the function runs: it is in no value, no gradient, no sum over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from subbyte.errors import UsageError
from subbyte.models.losses.entry import LossEntry
from subbyte.models.losses.outputs import KINDS, Outputs, Targets, missing

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rows:
    """M rows that count. `index` int64 [M]: their places in the flattened positions; None where all count."""

    outputs: Outputs
    targets: Targets
    weight: Tensor | None  # [M]
    index: Tensor | None
    positions: torch.Size
    count: int  # M

    def scattered(self, values: Tensor) -> Tensor:
        """Values [M] at their positions, 0 elsewhere."""
        if self.index is None:
            return values.reshape(self.positions)
        return values.new_zeros(self.positions.numel()).index_copy(0, self.index, values).reshape(self.positions)


def rows_that_count(entry: LossEntry, outputs: Outputs, targets: Targets) -> Rows:
    """The rows of a batch for a loss: those in the mask, and of no negative label where the loss reads labels.

    Raises UsageError for a need that is missing and for shapes that do not fit one another.
    """
    used = _used(entry, outputs, targets)
    mask, weight = targets.mask, targets.weight
    label = targets.label if "label" in targets and any("label" in need for need in entry.alternatives()) else None
    outputs, targets = outputs.only(used), targets.only(used)
    positions = _positions(entry, outputs, targets)
    _refuse_other_shapes(entry, outputs, targets, positions)
    index = _index(entry, positions, mask, label)

    def rows(tensor: Tensor) -> Tensor:
        flat = _flat(tensor, positions)
        flat = flat if index is None else flat.index_select(0, index)
        return flat.float() if flat.dtype in _HALF else flat

    return Rows(
        outputs.mapped(rows),
        targets.mapped(rows),
        None if weight is None else rows(_spread(entry, "weight", weight, positions)),
        index,
        positions,
        positions.numel() if index is None else len(index),
    )


def _used(entry: LossEntry, outputs: Outputs, targets: Targets) -> set[str]:
    given = {path for path, _ in (*outputs.tensors(), *targets.tensors())}
    given |= {path.split("features.")[0] + "features" for path in given if "features." in path}
    given |= {need for need, tensor in KINDS.items() if tensor in given}
    used: set[str] = set()
    for names in entry.alternatives():
        found = given.intersection(names)
        if not found:
            raise missing(f"loss '{entry.name}'", "|".join(names))
        used |= found
    return used


def _positions(entry: LossEntry, outputs: Outputs, targets: Targets) -> torch.Size:
    if entry.per == "position":
        if "label" in targets:
            return targets.label.shape
        if "value" in targets:
            return targets.value.shape
        if "soft" in targets:
            return targets.soft.shape[:-1]
    return next(tensor for _, tensor in (*outputs.tensors(), *targets.tensors())).shape[:1]


def _refuse_other_shapes(entry: LossEntry, outputs: Outputs, targets: Targets, positions: torch.Size) -> None:
    shapes = {path: list(tensor.shape) for path, tensor in (*outputs.tensors(), *targets.tensors())}
    expected = _expected_instead(entry, shapes, list(positions))
    if expected:
        found = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
        raise UsageError(f"loss '{entry.name}': the shapes do not fit one another: {found}; expected {expected}.")


def _expected_instead(entry: LossEntry, shapes: dict[str, list[int]], positions: list[int]) -> str:
    """What is expected where a shape is wrong; nothing where all are right."""
    axes, views, scores = len(positions), "views" in entry.needs, "scores" in entry.needs
    for path, shape in shapes.items():
        if shape[:axes] != positions and path != "ids":
            return f"{positions} in front of each"
        if path.endswith("embeddings") and len(shape) != axes + (2 if views else 1):
            return f"embeddings {'[N, V, D]' if views else '[N, D]'}"
        if path == "embeddings" and views and shape[axes] < 2:
            return "embeddings [N, V, D] with V >= 2"
        if path == "logits" and entry.per == "position" and len(shape) != axes + (0 if scores else 1):
            return f"logits {positions}" if scores else f"logits {[*positions, 'C']}".replace("'", "")
        if path == "prediction" and entry.per == "position" and len(shape) != axes:
            return f"prediction {positions}"
    same = shapes.get("logits") == shapes.get("teacher.logits") or not {"logits", "teacher.logits"} <= shapes.keys()
    return "" if same else "logits of one shape from both networks"


def _index(entry: LossEntry, positions: torch.Size, mask: Tensor | None, label: Tensor | None) -> Tensor | None:
    chosen = None if mask is None else _spread(entry, "mask", mask, positions).bool()
    if label is not None and (entry.per == "position" or label.dim() == 1):
        chosen = label >= 0 if chosen is None else chosen & (label >= 0)
    if chosen is None:
        return None
    index = chosen.reshape(-1).nonzero().squeeze(1)
    return None if len(index) == positions.numel() else index


def _spread(entry: LossEntry, name: str, tensor: Tensor, positions: torch.Size) -> Tensor:
    """A mask or weight [N] repeated over the positions of each sample; one for each position as it is."""
    if tensor.shape == positions:
        return tensor
    if tensor.shape != positions[:1]:
        raise UsageError(
            f"loss '{entry.name}': the {name} is {list(tensor.shape)}, expected {list(positions[:1])} or "
            f"{list(positions)}."
        )
    return tensor.reshape(-1, *[1] * (len(positions) - 1)).expand(positions)


def _flat(tensor: Tensor, positions: torch.Size) -> Tensor:
    if len(positions) == 1:
        return tensor
    if tensor.shape[: len(positions)] != positions:  # ids [N] for each position of the sample
        tensor = tensor.reshape(-1, *[1] * (len(positions) - 1)).expand(positions)
    return tensor.reshape(-1, *tensor.shape[len(positions) :])
