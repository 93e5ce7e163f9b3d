"""`Objective`: what a network is trained for, a sum of losses.

    objective = Objective("cross-entropy + 0.5*kd(temperature=4)")
    objective.check({"logits", "label", "teacher.logits"})                  # before any work
    with objective.attached(model, teacher):                                # hooks, if a loss reads modules
        value = objective(Outputs(model(x), teacher=Outputs(teacher(x))), Targets(label=y)).value

A loss gives one value per row. Here, once for all: which rows count, sample weights, reduction, sums over processes,
learned parameters, memory, and what is read of modules. Parameters are trained with the network; memory is saved with
the training state; neither is part of the network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.losses.composition import Summand, parse, written
from subbyte.models.losses.outputs import Outputs, Targets, missing
from subbyte.models.losses.processes import mean_over_processes, world_size
from subbyte.models.losses.register import get_loss
from subbyte.models.losses.rows import Rows
from subbyte.models.losses.taps import Taps, check_modules
from subbyte.models.losses.term import Term

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class LossOutput:
    """`value`: a scalar, or one value per position for "none"; `logs`: each loss alone, detached scalars."""

    value: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """A sum of losses, from text or from `Summand`s.

    `options` are those of the loss where the text is one name. Raises UnknownNameError for a loss that does not exist,
    UsageError for text and options that cannot be.
    """

    def __init__(self, losses: str | Sequence[Summand], options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        summands = parse(losses) if isinstance(losses, str) else tuple(losses)
        self.summands = _with_options(summands, options or {})
        entries = [get_loss(summand.name) for summand in self.summands]
        self.terms = nn.ModuleList(Term(e, s.options) for e, s in zip(entries, self.summands, strict=True))
        self._networks = {who: Taps(who) for who in ("model", "teacher")}

    def __str__(self) -> str:
        return written(self.summands)

    # ---- what it needs ----

    @property
    def needs(self) -> frozenset[str]:
        """What its losses need, of `outputs.NEEDS`; "label|soft" where one of two is enough."""
        return frozenset(need for term in self._each() for need in term.entry.needs)

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss reads a teacher."""
        return any(name.startswith("teacher.") for need in self.needs for name in need.split("|"))

    @property
    def has_memory(self) -> bool:
        """Whether `prepare` must be called."""
        return any(term.entry.memory for term in self._each())

    def check(
        self, given: Collection[str], *, model: nn.Module | None = None, teacher: nn.Module | None = None
    ) -> None:
        """Raise UsageError unless all that the losses need is in `given`, or is read of a module.

        `given` has names of `outputs.NEEDS`; "views" says that batches have several views of each sample, "teacher"
        that there is one. With the networks, the names of modules are checked too: UnknownNameError.
        """
        for term in self._each():
            for names in term.entry.alternatives():
                if not any(_is_given(name, given, term.modules_named) for name in names):
                    raise missing(f"loss '{term.entry.name}'", "|".join(names))
        if any(name.startswith("teacher") for name in given) and not self.needs_teacher:
            raise UsageError(
                f"loss '{self}' learns nothing from a teacher; leave it out, or choose a loss such as 'kd'."
            )
        for who, network in (("model", model), ("teacher", teacher)):
            if network is not None:
                check_modules(network, self._modules_of(who), who)

    @contextmanager
    def attached(self, model: nn.Module, teacher: nn.Module | None = None) -> Iterator[None]:
        """Within this context the modules that the losses read are recorded; raises UnknownNameError."""
        try:
            for who, network in (("model", model), ("teacher", teacher)):
                if network is not None:
                    self._networks[who].attach(network, self._modules_of(who))
            yield
        finally:
            for taps in self._networks.values():
                taps.detach()

    def prepare(self, outputs: Outputs, samples: int | None = None) -> None:
        """Make the memory of the losses for outputs like these and a training set of `samples`."""
        for term in self._each():
            term.prepare(self._read(term, outputs), samples)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is learned, without weight decay: groups of an optimizer; none where nothing is."""
        learned = list(self.parameters())
        return [{"params": learned, "weight_decay": 0.0}] if learned else []

    # ---- its value ----

    def forward(self, outputs: Outputs, targets: Targets, reduction: Reduction = "mean") -> LossOutput:
        """The sum over losses of coefficient times loss.

        mean: sum(w l) / sum(w) over the rows that count, of all processes in training; sum: sum(w l); none: w l at
        every position, 0 where it does not count. 0 with a graph where nothing counts.
        """
        if reduction not in ("mean", "sum", "none"):
            raise UsageError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
        values = []
        for term in self._each():
            rows, per_row = term(self._read(term, outputs), targets)
            values.append(_reduced(rows, per_row, reduction, over_processes=self.training))
        for taps in self._networks.values():
            taps.clear()
        if len({value.shape for value in values}) > 1:
            raise UsageError(f"loss '{self}': its losses have different positions, reduce them by 'mean' or 'sum'.")
        logs = {summand.loss: value.detach().mean() for summand, value in zip(self.summands, values, strict=True)}
        total = sum(s.coefficient * value for s, value in zip(self.summands, values, strict=True))
        assert isinstance(total, Tensor)
        return LossOutput(total, logs)

    def _each(self) -> Iterator[Term]:
        for term in self.terms:
            assert isinstance(term, Term)
            yield term

    def _modules_of(self, who: str) -> list[str]:
        """Names of the modules of a network that are read."""
        return [
            name
            for term in self._each()
            for need, names in term.modules_named.items()
            for name in names
            if need.startswith("teacher.") == (who == "teacher")
        ]

    def _read(self, term: Term, outputs: Outputs) -> Outputs:
        """The outputs with what the term reads of modules."""
        if not term.modules_named:
            return outputs
        model, teacher = (self._of_modules(term, who, outputs.views) for who in ("model", "teacher"))
        if teacher:
            before = outputs.teacher if any(path.startswith("teacher.") for path, _ in outputs.tensors()) else Outputs()
            return outputs.replaced(**model, teacher=before.replaced(**teacher))
        return outputs.replaced(**model)

    def _of_modules(self, term: Term, who: str, views: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for need, names in term.modules_named.items():
            if need.startswith("teacher.") == (who == "teacher"):
                values = {name: self._networks[who].read(name, views) for name in names}
                of_features = need.endswith("features")
                found["features" if of_features else "embeddings"] = values if of_features else values[names[0]]
        return found


def _is_given(name: str, given: Collection[str], modules: Collection[str]) -> bool:
    """Whether a need is in the batches, or a named module gives it."""
    if name == "views":  # a fact about the batches; the embeddings are the result or read of a module
        return name in given and ("embeddings" in given or name in modules)
    if name.startswith("teacher.") and name in modules:
        return any(other.startswith("teacher") for other in given)
    return name in given or name in modules


def _with_options(summands: tuple[Summand, ...], options: Mapping[str, Any]) -> tuple[Summand, ...]:
    if not summands:
        raise UsageError("an objective without a loss; name one, such as 'cross-entropy'.")
    if options and (len(summands) > 1 or summands[0].options):
        raise UsageError(
            f"loss '{written(summands)}': options beside it do not say of which loss they are; write them in it, e.g. "
            f"{summands[-1].name}({next(iter(options))}={next(iter(options.values()))})."
        )
    repeated = sorted({one.loss for one in summands if [other.loss for other in summands].count(one.loss) > 1})
    if repeated:
        raise UsageError(f"loss '{written(summands)}': '{repeated[0]}' occurs twice; give it one coefficient.")
    return tuple(Summand(one.name, one.coefficient, {**one.options, **options}) for one in summands)


def _reduced(rows: Rows, per_row: Tensor, reduction: Reduction, *, over_processes: bool) -> Tensor:
    weighted = per_row if rows.weight is None else per_row * rows.weight
    if reduction == "none":
        return rows.scattered(weighted)
    if reduction == "sum":
        return weighted.sum()
    total = weighted.new_full((), float(rows.count)) if rows.weight is None else rows.weight.sum().to(weighted)
    if over_processes and world_size() > 1:
        total = mean_over_processes(total)  # gradients are averaged over processes, so that their sum is over all rows
    return weighted.sum() / torch.where(total > 0, total, torch.ones_like(total))
