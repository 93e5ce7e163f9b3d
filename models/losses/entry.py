"""A registered loss: its function, what the function needs, its options, what is learned and what is kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from subbyte.models.losses.memory import QueueOf, TableOf

# need -> the option of a term that names the modules which give it
TAPS = {
    "embeddings": "embeddings",
    "views": "embeddings",
    "features": "features",
    "teacher.embeddings": "teacher_embeddings",
    "teacher.features": "teacher_features",
}


@dataclass(frozen=True)
class LossEntry:
    """A loss by name. The fields are those of `register.loss`, which says what each means."""

    name: str
    function: Callable[..., Tensor]
    needs: frozenset[str]
    source: str
    alias: str = ""
    good_for: tuple[str, ...] = ()
    per: Literal["position", "sample"] = "position"
    coupled: bool = False
    equivariant: bool = True
    learned: tuple[str, ...] = ()
    memory: Mapping[str, QueueOf | TableOf] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0].rstrip(".")

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The function's parameters after `outputs` and `targets`."""
        return dict(list(inspect.signature(self.function).parameters.items())[2:])

    @property
    def options(self) -> dict[str, Any]:
        """Hyper-parameters and their defaults."""
        return {name: parameter.default for name, parameter in self.parameters.items() if name not in self.memory}

    @property
    def taps(self) -> dict[str, str]:
        """Need -> the option that names the modules which give it, for each need that modules can give."""
        return {need: TAPS[need] for need in sorted(self.needs) if need in TAPS}

    def alternatives(self) -> list[tuple[str, ...]]:
        """The needs, each as the names of which one is enough: "label|soft" is ("label", "soft")."""
        return [tuple(need.split("|")) for need in sorted(self.needs)]
