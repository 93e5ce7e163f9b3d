"""One term of an objective: a loss with its options, its learned parameters and its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.losses.entry import LossEntry
from subbyte.models.losses.memory import Memory
from subbyte.models.losses.outputs import KINDS, Outputs, Targets, missing
from subbyte.models.losses.processes import AllRows, world_size
from subbyte.models.losses.rows import Rows, rows_that_count
from subbyte.models.options import check_options, range_of


class Term(nn.Module):
    """A loss that is ready to run, once `prepare` made its memory; raises UsageError for options that cannot be.

    A learned option is a parameter that begins with the option's value. One with the range (0, inf) is learned as its
    logarithm, so that it stays positive.
    """

    def __init__(self, entry: LossEntry, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        options = dict(options or {})
        self.entry = entry
        self.modules_named = {
            need: _names(entry, option, options[option])
            for need, option in entry.taps.items()
            if options.get(option) is not None
        }
        check_options(
            f"loss '{entry.name}'", entry.function, (*entry.options, *sorted(set(entry.taps.values()))), options
        )
        self.options = {name: options.get(name, default) for name, default in entry.options.items()}
        self._hints = get_type_hints(entry.function, include_extras=True)
        self.learned = nn.ParameterDict(
            {name: torch.tensor(self._raw(name, float(self.options[name]))) for name in entry.learned}
        )
        self.memory = nn.ModuleDict()

    def prepare(self, outputs: Outputs, samples: int | None) -> None:
        """Make the memory for outputs like these and a training set of `samples`."""
        found = dict(outputs.tensors())
        for name, declared in self.entry.memory.items():
            path = KINDS.get(declared.of, declared.of)
            if path not in found:
                raise missing(f"loss '{self.entry.name}'", declared.of)
            self.memory[name] = declared.make(found[path], self.options, samples)

    def forward(self, outputs: Outputs, targets: Targets) -> tuple[Rows, Tensor]:
        """The rows that count and a value for each, [M]."""
        if len(self.memory) < len(self.entry.memory):
            raise UsageError(f"loss '{self.entry.name}' has no memory yet; call objective.prepare first.")
        rows = rows_that_count(self.entry, outputs, targets)
        everyone = AllRows(rows.count, _device(rows)) if self._over_processes() else None
        if not (rows.count if everyone is None else everyone.total):
            values = self._nothing(rows)
        elif everyone is None:
            values = self._values(rows.outputs, rows.targets)
        else:
            every = rows.outputs.mapped(everyone.gather), rows.targets.mapped(everyone.gather)
            values = self._values(*every)[everyone.own]
        self._commit(gathered=everyone is not None)
        return rows, values

    def _over_processes(self) -> bool:
        return self.entry.coupled and self.training and world_size() > 1

    def _values(self, outputs: Outputs, targets: Targets) -> Tensor:
        learned = {name: self._learned(name) for name in self.entry.learned}
        given = {**self.options, **learned, **dict(self.memory.items())}
        one = next(tensor for _, tensor in (*outputs.tensors(), *targets.tensors()))
        rows = one.shape[:1]
        with torch.autocast(one.device.type, enabled=False):  # a loss is computed in single precision or more
            values = self.entry.function(outputs, targets, **given)
        if values.shape != rows:
            raise UsageError(
                f"loss '{self.entry.name}' gave {list(values.shape)} for {rows[0]} rows, expected {list(rows)}: "
                "return one value per row, the objective reduces them."
            )
        return values

    def _nothing(self, rows: Rows) -> Tensor:
        """No values, with a graph to everything that the loss reads or learns."""
        read = [tensor.sum() for _, tensor in rows.outputs.tensors()]  # of 0 rows
        return torch.stack([*read, *(0 * parameter for parameter in self.learned.values())]).sum().expand(0)

    def _commit(self, *, gathered: bool) -> None:
        for memory in self.memory.values():
            assert isinstance(memory, Memory)
            if self.training:
                memory.commit(gathered=gathered)
            else:
                memory.drop()

    def _raw(self, name: str, value: float) -> float:
        return math.log(value) if self._is_positive(name) else value

    def _learned(self, name: str) -> Tensor:
        raw: Tensor = self.learned[name]
        return raw.exp() if self._is_positive(name) else raw

    def _is_positive(self, name: str) -> bool:
        return range_of(self._hints[name]) is not None


def _names(entry: LossEntry, option: str, value: Any) -> tuple[str, ...]:
    names = tuple(str(name) for name in (value if isinstance(value, (list, tuple)) else [value]))
    if not names or (len(names) > 1 and not option.endswith("features")):
        raise UsageError(f"loss '{entry.name}': {option} names {len(names)} modules, expected one.")
    return names


def _device(rows: Rows) -> torch.device:
    return next(tensor for _, tensor in rows.outputs.tensors()).device
