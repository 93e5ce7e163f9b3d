"""What a loss is computed from: `Outputs` of a forward, `Targets` of a batch, and the names that a loss `needs`.

What was not given raises UsageError where it is read, so that a loss reads `outputs.logits` and is typed. To add a
name: a row of `NEEDS` and a property.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from subbyte.errors import UsageError

# name -> what it is; what to do where it is missing
NEEDS: dict[str, tuple[str, str]] = {
    "logits": ("logits [N, ..., C]", "train a model that gives one score per class"),
    "scores": (
        "scores [N, ...], a logit for each yes or no",
        "take a task with several labels per sample, or two classes",
    ),
    "prediction": ("predictions, real values [N, ...]", "take data and a task with real targets"),
    "embeddings": ("embeddings [N, D]", "name the module that gives them, e.g. NAME(embeddings=head:input)"),
    "views": (
        "embeddings [N, V, D] of V >= 2 views of each sample",
        "take a task whose batches have views, and name the module, e.g. NAME(embeddings=head:input)",
    ),
    "features": ("features by module name", "name the modules, e.g. NAME(features=[stages.0, stages.1])"),
    "teacher.logits": ("a teacher", "give the folder of a trained checkpoint as teacher"),
    "teacher.embeddings": (
        "a teacher's embeddings [N, D]",
        "give a teacher, and name its module, e.g. NAME(teacher_embeddings=head:input)",
    ),
    "teacher.features": (
        "a teacher's features by module name",
        "give a teacher, and name its modules, e.g. NAME(teacher_features=[stages.0])",
    ),
    "label": ("labels, int64 [N, ...]", "take data with labels"),
    "soft": ("soft targets [N, ..., C]", "take data with a probability of every class"),
    "value": ("real targets [N, ...]", "take data with real targets"),
    "ids": ("the numbers of the samples, int64 [N]", "take data whose batches say them"),
}

KINDS = {"scores": "logits", "views": "embeddings"}  # need -> the tensor that it is, of another shape


def missing(who: str, need: str) -> UsageError:
    """The error for a need that is not given, such as "label|soft", of which one is enough."""
    means, remedies = zip(*(NEEDS[name] for name in need.split("|")), strict=True)
    return UsageError(f"{who} needs {' or '.join(means)}; {' or '.join(remedies).replace('NAME', 'LOSS')}.")


def _given(name: str, value: Tensor | None) -> Tensor:
    if value is None:
        raise missing("what reads it", name)
    return value


class Outputs:
    """What a network gave for a batch of N samples, by name.

    logits [N, ..., C], prediction [N, ...], embeddings [N, D] or [N, V, D], features [N, ...] by module name; teacher:
    the Outputs of another network. `views`: rows of the network's batch that belong to one sample, next to each other.
    """

    def __init__(
        self,
        logits: Tensor | None = None,
        *,
        prediction: Tensor | None = None,
        embeddings: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        teacher: Outputs | None = None,
        views: int = 1,
    ) -> None:
        self._tensors = {"logits": logits, "prediction": prediction, "embeddings": embeddings}
        self.features: Mapping[str, Tensor] = dict(features or {})
        self._teacher = teacher
        self.views = views

    @property
    def logits(self) -> Tensor:
        """Scores before a softmax or sigmoid, [N, ..., C]."""
        return _given("logits", self._tensors["logits"])

    @property
    def scores(self) -> Tensor:
        """The logits where there is one for each yes or no, [N, ...], the shape of the label."""
        return self.logits

    @property
    def prediction(self) -> Tensor:
        """Real values [N, ...]."""
        return _given("prediction", self._tensors["prediction"])

    @property
    def embeddings(self) -> Tensor:
        """[N, D], or [N, V, D] for V views of each sample."""
        return _given("embeddings", self._tensors["embeddings"])

    @property
    def teacher(self) -> Outputs:
        """What the teacher gave for the same batch; no gradient reaches it."""
        if self._teacher is None:
            raise missing("what reads it", "teacher.logits")
        return self._teacher

    @property
    def log_probabilities(self) -> Tensor:
        """log softmax(logits) over the classes, [N, ..., C]."""
        return torch.log_softmax(self.logits, dim=-1)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its path, such as 'teacher.logits' or 'features.stages.0'."""
        for name, value in self._tensors.items():
            if value is not None:
                yield name, value
        for name, value in self.features.items():
            yield f"features.{name}", value
        if self._teacher is not None:
            yield from ((f"teacher.{path}", value) for path, value in self._teacher.tensors())

    def only(self, needs: Collection[str]) -> Outputs:
        """These outputs without what is not among `needs`."""
        wanted = {KINDS.get(need, need) for need in needs}
        of_teacher = {need.removeprefix("teacher.") for need in wanted if need.startswith("teacher.")}
        return Outputs(
            **{name: value for name, value in self._tensors.items() if name in wanted},
            features=self.features if "features" in wanted else None,
            teacher=self.teacher.only(of_teacher) if of_teacher else None,
            views=self.views,
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """These outputs with `change` applied to each tensor; those of the teacher without their gradient."""
        return Outputs(
            **{name: None if value is None else change(value) for name, value in self._tensors.items()},
            features={name: change(value) for name, value in self.features.items()},
            teacher=None if self._teacher is None else self._teacher.mapped(lambda value: change(value.detach())),
            views=self.views,
        )

    def replaced(
        self,
        embeddings: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
        teacher: Outputs | None = None,
    ) -> Outputs:
        """These outputs with those given in place of their own."""
        tensors = self._tensors if embeddings is None else {**self._tensors, "embeddings": embeddings}
        return Outputs(
            **tensors,
            features=features or self.features,
            teacher=teacher or self._teacher,
            views=self.views,
        )


class Targets:
    """What the network should have given, by name.

    label int64 [N, ...], a negative one leaves the position out; soft [N, ..., C], rows sum to 1; value [N, ...]; ids
    int64 [N], numbers of the samples in their set; mask bool and weight, [N] or of the shape of the label.
    """

    def __init__(
        self,
        label: Tensor | None = None,
        *,
        soft: Tensor | None = None,
        value: Tensor | None = None,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> None:
        self._tensors = {"label": label, "soft": soft, "value": value, "ids": ids}
        self.mask, self.weight = mask, weight

    @property
    def label(self) -> Tensor:
        """Classes, int64 [N, ...]."""
        return _given("label", self._tensors["label"])

    @property
    def soft(self) -> Tensor:
        """Probabilities of the classes [N, ..., C]."""
        return _given("soft", self._tensors["soft"])

    @property
    def value(self) -> Tensor:
        """Real values [N, ...]."""
        return _given("value", self._tensors["value"])

    @property
    def ids(self) -> Tensor:
        """Numbers of the samples in their set, int64 [N]."""
        return _given("ids", self._tensors["ids"])

    def __contains__(self, name: str) -> bool:
        return self._tensors.get(name) is not None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, without mask and weight."""
        return ((name, value) for name, value in self._tensors.items() if value is not None)

    def only(self, needs: Collection[str]) -> Targets:
        """These targets without mask, weight and what is not among `needs`."""
        return Targets(**{name: value for name, value in self._tensors.items() if name in needs})

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """These targets with `change` applied to each tensor, without mask and weight."""
        return Targets(**{name: None if value is None else change(value) for name, value in self._tensors.items()})


def at_label(values: Tensor, label: Tensor) -> Tensor:
    """values[..., label]: of values [N, C] those at labels [N], as [N]."""
    return values.gather(-1, label.unsqueeze(-1)).squeeze(-1)
